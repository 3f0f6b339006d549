import { Interruption } from "./errors.js";
import { post } from "./upload.js";

/** One HTTP exchange, given up when nothing has been heard for `limit` milliseconds. */
export class Line {
  #controller = new AbortController();
  #limit;
  #timer;
  #heard = Date.now(); // the wall clock: a monotonic one may stand still while the machine sleeps
  progressed = false;
  sentAway = null; // milliseconds, where the last that came was when to come back: the server is about to restart

  constructor(limit) {
    this.limit = limit;
  }

  set limit(milliseconds) {
    this.#limit = milliseconds;
    this.#watch();
  }

  get silence() {
    return Date.now() - this.#heard;
  }

  #watch = () => {
    clearTimeout(this.#timer);
    const left = this.#limit - this.silence;
    if (left <= 0) this.drop(`nothing was heard for ${this.silence} ms`);
    else if (left < Infinity) this.#timer = setTimeout(this.#watch, left);
  };

  drop(reason = "it is no longer needed") {
    clearTimeout(this.#timer);
    this.#controller.abort(new Interruption(reason, { atOnce: true }));
  }

  async fetch(url, init) {
    return this.heed(fetch(url, { ...init, cache: "no-store", signal: this.#controller.signal }));
  }

  /** A POST whose answer is wanted whole. `onUpload(loaded, total)` is told how many bytes have gone out. */
  async post(url, { onUpload, ...init }) {
    const heard = (loaded, total) => {
      this.#heard = Date.now();
      onUpload(loaded, total);
    };
    return this.heed(post(url, { ...init, onUpload: heard, signal: this.#controller.signal }));
  }

  async *chunks(response) {
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await this.heed(reader.read());
      this.#heard = Date.now();
      if (done) return;
      yield value;
    }
  }

  async heed(promise) {
    try {
      return await promise;
    } catch (cause) {
      const { aborted, reason } = this.#controller.signal;
      throw aborted ? reason : new Interruption("the connection broke", { cause });
    }
  }
}

/** A URL with a path behind it, and the cursor in its query: a header would cost a foreign page a preflight. */
export function extended(url, path, after) {
  const longer = new URL(url);
  longer.pathname += path;
  if (after) longer.searchParams.set("after", after);
  return longer.href;
}
