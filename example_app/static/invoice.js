/** One invoice on the page. */

import { element, errorsInWords, showFailure } from "./page.js";

const FACTS = { vendor: "From", number: "Number", date: "Date", currency: "Currency" };
const quantity = new Intl.NumberFormat(undefined, { maximumFractionDigits: 3 });

export class InvoiceView {
  #section;
  #find;

  constructor(section) {
    this.#section = section;
    this.#find = (selector) => section.querySelector(selector);
  }

  begin(name) {
    this.#section.hidden = false;
    this.#find("h3").textContent = name;
    this.#find(".phase").textContent = "Reading…";
    this.restart();
    this.#show("doing");
  }

  /** An answer was refused, and the model is asked again. */
  reject({ attempt, errors }) {
    this.#find(".rejected").hidden = false;
    this.#find(".rejected ol").append(element("li", errorsInWords(errors).join(" "), { value: attempt }));
    this.#find(".phase").textContent = `Reading again, attempt ${attempt + 1}…`;
  }

  /** What was refused until now belongs to an attempt that is void. */
  restart() {
    this.#find(".rejected").hidden = true;
    this.#find(".rejected ol").replaceChildren();
  }

  end(invoice) {
    const money = moneyIn(invoice.currency);
    this.#find(".facts").replaceChildren(
      ...Object.entries(FACTS).map(([name, label]) => {
        const fact = element("div");
        fact.append(element("dt", label), element("dd", invoice[name]));
        return fact;
      }),
    );
    this.#find("tbody").replaceChildren(...invoice.lines.map((line) => row(line, money)));
    for (const sum of ["tax", "total"]) this.#find(`[data-sum=${sum}]`).textContent = money.format(invoice[sum]);
    this.#find("code").textContent = JSON.stringify(invoice, null, 2);
    this.#show("outcome");
  }

  fail(text) {
    this.#show(null);
    showFailure(this.#find(".failure"), text);
  }

  #show(part) {
    showFailure(this.#find(".failure"));
    for (const name of ["doing", "outcome"]) this.#find(`.${name}`).hidden = name !== part;
    this.#find("#stop").hidden = part !== "doing";
  }
}

function row(line, money) {
  const made = element("tr");
  made.append(
    element("td", line.description),
    ...[quantity.format(line.quantity), money.format(line.unit_price), money.format(line.amount)].map((text) =>
      element("td", text, { class: "number" }),
    ),
  );
  return made;
}

function moneyIn(currency) {
  return new Intl.NumberFormat(undefined, { style: "currency", currency });
}
