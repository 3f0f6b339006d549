/** One analysis on the page: what is being done, and what came of it. */

import { announce, element, showFailure } from "./page.js";

const UNKNOWN = -1;

export class AnalysisView {
  #section;
  #find;

  constructor(section) {
    this.#section = section;
    this.#find = (selector) => section.querySelector(selector);
  }

  set title(name) {
    this.#find("h3").textContent = name;
  }

  begin(name) {
    this.title = name;
    this.#section.hidden = false;
    this.#show("doing");
    this.#find("#stop").hidden = false;
    showFailure(this.#find(".failure"));
    this.doing("Starting");
  }

  /** @param {number} fraction from 0 to 1; undefined where nobody knows */
  doing(what, fraction = UNKNOWN) {
    this.#find("#doing").textContent = what ? `${what[0].toUpperCase()}${what.slice(1)}…` : "Working…";
    const bar = this.#find("progress");
    if (fraction === UNKNOWN) bar.removeAttribute("value");
    else bar.value = fraction;
  }

  end({ result, cancelled, usage }) {
    this.#show(cancelled ? null : "outcome");
    if (cancelled) {
      announce("Stopped.");
      return showFailure(this.#find(".failure"), "It was stopped. Send the file again to have it analysed after all.");
    }
    this.#find(".summary").textContent = result.summary;
    this.#find("h4").hidden = !result.key_points.length;
    this.#find(".points").replaceChildren(...result.key_points.map((point) => element("li", point)));
    this.#find(".figures").textContent = figures(result.pages, usage);
    announce(`Done. ${result.summary}`);
  }

  fail(text) {
    this.#show(null);
    showFailure(this.#find(".failure"), text);
    announce(text);
  }

  #show(part) {
    for (const name of ["doing", "outcome"]) this.#find(`.${name}`).hidden = name !== part;
  }
}

function figures(pages, usage) {
  const parts = [`${pages} page${pages === 1 ? "" : "s"}`];
  if (usage) parts.push(`${(usage.prompt_tokens + usage.completion_tokens).toLocaleString("en")} tokens`);
  return parts.join(" · ");
}
