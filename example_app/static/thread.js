/** The conversation that is open: its messages in order, and their elements on the page. */

import { AnswerView, questionElement } from "./answer.js";

export class Thread {
  id = null; // null until the first question of a new one is asked
  messages = []; // {id, role, content, element, view}; the id is null where the server does not know it yet
  #list;
  #follow;

  constructor(list, follow) {
    this.#list = list;
    this.#follow = follow;
  }

  /** Leave the conversation for another. */
  leave(id) {
    this.id = id;
    this.messages = [];
    this.#list.replaceChildren();
  }

  ask(content) {
    return this.#show({ id: null, role: "user", content, element: questionElement(content) });
  }

  /** Begin to show an answer to the last question. */
  answer() {
    const view = new AnswerView(() => this.#follow.grown());
    return this.#show({ id: null, role: "assistant", content: "", element: view.element, view });
  }

  /** Show again what was being written when the conversation was left. */
  putBack(...messages) {
    for (const message of messages) this.#show(message);
  }

  /** Take the last answer away. @returns the question */
  dropAnswer() {
    if (this.messages.at(-1).role === "assistant") this.messages.pop().element.remove();
    return this.messages.at(-1);
  }

  /** The id of the message that another follows, on the server; null if it is the first. */
  before(message) {
    const earlier = this.messages.slice(0, this.messages.indexOf(message));
    return earlier.findLast(({ id }) => id)?.id ?? null;
  }

  /** The message that an element shows. */
  at(element) {
    return this.messages.find((message) => message.element === element);
  }

  /**
   * Bring what is shown in line with what the server keeps. A last question that it refused stays at the end.
   *
   * @param {(answer: object, message: object) => void} fill called for each answer that was not shown before
   * @param {object[]} others messages that this page has, though they are not shown now
   */
  show(path, fill, others) {
    const known = new Map([...this.messages, ...others].map((message) => [message.id, message]));
    const refused = this.messages.slice(this.messages.findLastIndex(({ id }) => id) + 1);
    let same = 0;
    while (same < path.length && this.messages[same]?.id === path[same].id) same += 1;
    for (const { element } of this.messages.slice(same)) element.remove();
    this.messages.length = same;
    for (const message of path.slice(same)) {
      if (known.has(message.id)) this.#show(known.get(message.id));
      else this.#add(message, fill);
    }
    this.putBack(...refused);
  }

  #add(message, fill) {
    const shown = message.role === "user" ? this.ask(message.content) : this.answer();
    shown.id = message.id;
    if (shown.view) fill(shown, message);
  }

  #show(message) {
    if (message.view) this.messages.findLast(({ view }) => view)?.view.settle();
    this.messages.push(message);
    this.#list.append(message.element);
    this.#follow.grown();
    return message;
  }
}
