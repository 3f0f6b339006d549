import { Interruption } from "./errors.js";
import { EventStreamParser } from "./events.js";
import { Line } from "./line.js";

const HEARTBEATS_MISSED = 2.5;
const DEFAULTS = { retries: 8, connectTimeout: 15_000 };
const WAKING = [
  [globalThis, "online"],
  [globalThis.document, "visibilitychange"],
];

/**
 * One attempt after another to read an event stream: how long each may take, whether there is another, and the pause
 * before it. What the server says of its pace is kept from one to the next.
 */
export class Attempts {
  line = null; // of the attempt that is going on, or was last
  retry = 1_000;
  #options;
  #heartbeat = 5_000;
  #failures = 0; // attempts since the last that brought something
  #pausing = null; // between two attempts: {end, asked}
  #closed = false;

  /**
   * @param options those of a run or a feed; `onHidden`, called when nobody sees the page any more; and `openWithin`,
   *   milliseconds in which a stream that has begun must say how often it will be heard
   */
  constructor(options) {
    this.#options = { ...DEFAULTS, ...options };
    for (const [target, type] of WAKING) target?.addEventListener?.(type, this.#wake);
  }

  get retries() {
    return this.#options.retries;
  }

  get connectTimeout() {
    return this.#options.connectTimeout;
  }

  /** How long a tail may take to begin: it is answered at once, unless the connection has died with the last line. */
  get tailTimeout() {
    return Math.min(this.connectTimeout, this.#heartbeat * 2 ** this.#failures);
  }

  async headers(ours) {
    const { headers } = this.#options;
    const all = new Headers(typeof headers === "function" ? await headers() : headers);
    for (const [name, value] of Object.entries(ours)) all.set(name, value);
    return all;
  }

  /** A request beside the stream, with its whole answer. */
  async ask(method, url) {
    const line = new Line(this.connectTimeout);
    try {
      const headers = await this.headers({ Accept: "application/json" });
      const response = await line.fetch(url, { method, headers, credentials: this.#options.credentials });
      return new Response((await line.heed(response.text())) || null, response);
    } finally {
      line.drop();
    }
  }

  /** Begin one; whatever `read(response)` does with the answer belongs to it. */
  async attempt({ url, limit, ...init }, read) {
    const line = (this.line = new Line(limit));
    try {
      await read(await line.fetch(url, { ...init, credentials: this.#options.credentials }));
    } finally {
      line.drop();
    }
  }

  /** Read an event stream to its end. */
  async hear(response, onBlock) {
    const { line } = this;
    line.limit = this.#options.openWithin ?? Infinity; // until the server has said how often it will be heard
    const parser = new EventStreamParser({
      maxEventSize: this.#options.maxEventSize,
      onBlock: (block) => {
        line.sentAway = null;
        onBlock(block, line);
      },
      onRetry: (milliseconds) => (line.sentAway = this.retry = milliseconds),
      onComment: (comment) => {
        line.sentAway = null;
        const beat = /^ ?heartbeat=([0-9.]+)$/.exec(comment);
        if (!beat) line.progressed = true;
        else line.limit = HEARTBEATS_MISSED * (this.#heartbeat = beat[1] * 1_000 || Infinity);
      },
    });
    for await (const bytes of line.chunks(response)) parser.feed(bytes);
  }

  /** What `attempt()` comes to: after an interruption it is made anew, while there is another. */
  async persist(attempt) {
    for (;;) {
      this.line = null;
      try {
        const outcome = await attempt();
        this.#failures = 0;
        return outcome;
      } catch (error) {
        if (this.#closed || !(error instanceof Interruption)) throw error;
        if (!this.another()) throw error.verdict;
        await this.pause(error);
      }
    }
  }

  /** Whether another may follow the one that has failed. */
  another() {
    const offline = globalThis.navigator?.onLine === false; // then a failure says nothing about the server
    const good = this.line?.progressed || this.line?.sentAway != null;
    this.#failures = good ? 0 : Math.min(this.#failures + 1, offline ? this.retries : Infinity);
    return this.#failures <= this.retries;
  }

  /** Wait before the next: as long as the server has asked for, else longer with each failure. */
  async pause(interruption) {
    const away = this.line?.sentAway ?? null;
    const asked = away !== null || interruption.retryAfter > 0;
    let timer;
    await new Promise((end) => {
      this.#pausing = { end, asked };
      timer = setTimeout(end, away ?? interruption.wait(this.retry, this.#failures));
    });
    clearTimeout(timer);
    this.#pausing = null;
  }

  /** End a pause before its time. */
  hurry() {
    this.#pausing?.end();
  }

  close() {
    for (const [target, type] of WAKING) target?.removeEventListener?.(type, this.#wake);
    this.#closed = true;
    this.hurry();
  }

  #wake = ({ type }) => {
    if (type === "online") this.#failures = 0;
    else if (document.visibilityState === "hidden") return this.#options.onHidden?.();
    if (this.#pausing?.asked === false) this.hurry();
    else if (!this.#pausing && this.line?.silence > this.#heartbeat) this.line.drop("the line was silent");
  };
}
