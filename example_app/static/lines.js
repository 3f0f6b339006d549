/** What was said in a call, as it is said: the user's words as they are understood, and the answer as it is heard. */

import { element } from "./page.js";

export class Lines {
  #list;
  #mine = null; // the user's line that still changes
  #answers = new Map(); // by the run's id: {line, written, heard, over}; `heard` counts characters
  #latest = null;

  constructor(list) {
    this.#list = list;
  }

  /** What the user says, as far as it is understood. */
  hear({ text, final }) {
    if (!text) {
      this.#mine?.remove();
      this.#mine = null;
      return;
    }
    this.#mine ??= this.#add("you", "You", this.#unspokenAnswer);
    this.#mine.querySelector("p").textContent = text;
    this.#mine.classList.toggle("partial", !final);
    if (final) this.#mine = null;
  }

  /** A message that was typed, or said before. */
  add(role, text) {
    const line = this.#add(role === "user" ? "you" : "answer", role === "user" ? "You" : "Answer");
    line.querySelector("p").textContent = text;
  }

  begin(run) {
    const line = this.#add("answer", "Answer");
    this.#latest = { line, written: "", heard: 0, over: false };
    this.#answers.set(run, this.#latest);
  }

  write(token) {
    if (!this.#latest) return;
    this.#latest.written += token;
    this.#draw(this.#latest);
  }

  /** A sentence of the answer begins to be heard. */
  speak(sentence) {
    const answer = this.#latest;
    const at = answer?.written.indexOf(sentence, Math.max(0, answer.heard - sentence.length)) ?? -1;
    if (at < 0) return;
    answer.heard = Math.max(answer.heard, at + sentence.length);
    this.#draw(answer);
  }

  /** The answer was interrupted: this is what is kept of it. */
  cut(run, heard) {
    const answer = this.#answers.get(run);
    if (!answer) return;
    [answer.written, answer.heard] = [heard, heard.length];
    this.#draw(answer);
    this.#end(answer, heard ? "Interrupted here" : "Interrupted before it was heard");
  }

  /** The server that was speaking is gone, and with it the rest of the answer. */
  lose() {
    if (this.#latest && !this.#latest.over) this.#end(this.#latest, "The line dropped here");
  }

  /** All of it has been heard. */
  finish(run) {
    const answer = this.#answers.get(run);
    if (!answer) return;
    answer.heard = answer.written.length;
    answer.over = true;
    this.#draw(answer);
  }

  /** An answer that nothing is heard of yet comes after what the user goes on to say. */
  get #unspokenAnswer() {
    return this.#latest && !this.#latest.written ? this.#latest.line : null;
  }

  #end(answer, why) {
    answer.over = true;
    this.#follow(() => answer.line.append(element("span", why, { class: "note" })));
  }

  #draw({ line, written, heard }) {
    const rest = element("span", written.slice(heard), { class: "unheard" });
    this.#follow(() => line.querySelector("p").replaceChildren(written.slice(0, heard), rest));
  }

  #add(kind, who, before = null) {
    const line = element("li", "", { class: kind });
    line.append(element("span", who, { class: "unseen" }), element("p"));
    this.#follow(() => this.#list.insertBefore(line, before));
    return line;
  }

  /** Keep the end in view, unless somebody reads further up. */
  #follow(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.#list;
    change();
    if (scrollHeight - scrollTop - clientHeight < 60) this.#list.scrollTop = this.#list.scrollHeight;
  }
}
