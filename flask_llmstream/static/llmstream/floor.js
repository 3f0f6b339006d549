/**
 * Who has the floor in a call, as far as this page can tell. It does no I/O.
 *
 *     hearing     the user speaks
 *     speaking    an answer is being heard
 *     thinking    the user has said something, and nothing of the answer is heard yet
 *     listening   none of these
 */
export class Floor {
  #user = false;
  #awaited = false; // whether an answer is
  #written = false; // whether it has come to words
  #generation = null; // which is heard, or will be
  #sounding = false;

  get state() {
    if (this.#user) return "hearing";
    if (this.#generation !== null && this.#sounding) return "speaking";
    return this.#awaited || this.#generation !== null ? "thinking" : "listening";
  }

  /** The user presses the button, or lets it go. */
  talk(on) {
    if (this.#user && !on) this.#awaited = true;
    this.#user = on;
  }

  /** The user has sent a text. */
  type() {
    this.#awaited = true;
  }

  /** A control message of the server's. */
  receive(message) {
    const { type, generation } = message;
    if (type === "speech_started" || type === "speech_stopped") this.talk(type === "speech_started");
    else if (type === "run") [this.#awaited, this.#written] = [true, false];
    else if (type === "token") this.#written = true;
    else if (type === "speaking") [this.#generation, this.#sounding] = [generation, false];
    else if (type === "flush" && this.#generation < generation) this.hush();
    else if (isEnd(message, this.#written)) this.#awaited = false;
  }

  /** Nothing of what is queued will be heard. */
  hush() {
    this.#generation = null;
  }

  /** What has reached the ear. */
  hear({ generation, samples, finished }) {
    if (generation !== this.#generation || !samples) return;
    [this.#sounding, this.#awaited] = [true, false];
    if (finished) this.hush();
  }
}

/** Whether there is no answer to wait for, or no more of it. */
function isEnd({ type, text, final }, written) {
  if (type === "transcript") return final && !text.trim();
  return type === "done" ? !written : ["error", "problem", "turn", "interrupted"].includes(type);
}
