/**
 * What was said so far: messages in order, kept for a reload of the page by the tab's own storage.
 *
 * A message is `{role, content}`; an answer has besides `state` ("running", "done", "stopped", "failed"), `note`
 * (why it ended as it did), `figures`, and while it runs, `key` and `location`, by which a reload finds it again.
 */

const STORED = "conversation";

export class Conversation {
  messages;

  constructor() {
    this.messages = read() ?? [];
  }

  /** The answer to the last question, if there is one yet. */
  get lastAnswer() {
    const last = this.messages.at(-1);
    return last?.role === "assistant" ? last : undefined;
  }

  ask(content) {
    this.messages.push({ role: "user", content });
    this.save();
  }

  /** Begin an answer to the last question. One that is there already is dropped. */
  beginAnswer() {
    if (this.lastAnswer) this.messages.pop();
    const answer = { role: "assistant", content: "", state: "running", key: crypto.randomUUID?.() };
    this.messages.push(answer);
    this.save();
    return answer;
  }

  clear() {
    this.messages = [];
    this.save();
  }

  /** What the model needs to know: every message that has a text, before the answer it is to write. */
  forModel() {
    const said = this.lastAnswer ? this.messages.slice(0, -1) : this.messages;
    return said.filter(({ content }) => content.trim()).map(({ role, content }) => ({ role, content }));
  }

  save() {
    try {
      sessionStorage.setItem(STORED, JSON.stringify(this.messages));
    } catch {
      // A full or forbidden storage costs the conversation at a reload, nothing else.
    }
  }
}

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED));
  } catch {
    return undefined;
  }
}
