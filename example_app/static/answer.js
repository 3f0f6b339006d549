/** One answer on the page: its text as it grows, what the model is doing meanwhile, its figures and its end. */

import { GrowingMarkdown } from "./markdown.js";

const PHASES = {
  connecting: "Sending…",
  queued: "In the queue…",
  thinking: "Thinking…",
  tool: "Using a tool…",
  writing: "Writing…",
  silent: "Waiting for more…",
};

export class AnswerView {
  #find;
  #markdown;
  #changed;

  /** @param {() => void} changed called when the answer has grown on the page */
  constructor(changed) {
    this.element = document.querySelector("#answer-template").content.firstElementChild.cloneNode(true);
    this.#find = (selector) => this.element.querySelector(selector);
    this.#changed = changed;
    this.#markdown = new GrowingMarkdown(this.#find(".text"), changed);
  }

  append(text) {
    this.#find(".waiting").hidden = true;
    this.#markdown.append(text);
  }

  /** Show what the run is doing while no text arrives. */
  showPhase(phase) {
    this.element.setAttribute("aria-busy", "true");
    this.#find(".phase").textContent = PHASES[phase] ?? "Working…";
    this.#find(".waiting").hidden = false;
    this.#changed();
  }

  appendReasoning(text) {
    this.#find(".reasoning").hidden = false;
    this.#find(".reasoning p").append(text);
    this.#changed();
  }

  addTool({ name, arguments: given }) {
    const card = document.createElement("p");
    const what = document.createElement("strong");
    const values = document.createElement("code");
    what.textContent = name;
    values.textContent = given;
    card.append("The model asks for the tool ", what, " with ", values);
    this.#find(".tools").append(card);
    this.#changed();
  }

  showFigures(text) {
    this.#find(".figures").textContent = text;
  }

  /** What was shown is void: another attempt begins. */
  restart() {
    this.#markdown.clear();
    this.#find(".tools").replaceChildren();
    this.#find(".reasoning p").replaceChildren();
    this.#find(".reasoning").hidden = true;
  }

  /**
   * The run has ended: as "done", "stopped" or "failed" for the reason that `note` gives.
   *
   * @param {{shown: boolean}} busy another answer was in the way, which can be stopped and, where it is known, shown
   */
  end({ state, note = "", content, figures = "", busy }) {
    this.element.setAttribute("aria-busy", "false");
    this.element.dataset.state = state;
    this.#find(".waiting").hidden = true;
    this.#markdown.finish();
    this.showFigures(state === "failed" ? figures : [note, figures].filter(Boolean).join(" · "));
    this.#find(".failure p").textContent = note;
    this.#find(".failure").hidden = state !== "failed";
    this.#find("[data-action=show]").hidden = !busy?.shown;
    this.#find("[data-action=make-way]").hidden = !busy;
    this.#find("[data-action=copy]").hidden = !content;
    this.#find("[data-action=regenerate]").hidden = state === "failed";
    this.#changed();
  }

  /** The answer as it reads, for those who hear the page. */
  words(note = "") {
    return `${this.#find(".text").textContent.trim()} ${note}`.trim();
  }

  /** Only the answer to the last question can be had again. */
  settle() {
    this.#find("[data-action=regenerate]").hidden = true;
    this.#find(".failure .ways").hidden = true;
  }
}

export function questionElement(text) {
  const element = document.querySelector("#question-template").content.firstElementChild.cloneNode(true);
  element.querySelector("p").textContent = text;
  return element;
}
