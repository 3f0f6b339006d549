/**
 * Starts a run, reads it, and reads on after a dropped line, until the run has ended.
 *
 * A run is a numbered log on the server, and this is one of its readers. `#seen` is the last event that it has;
 * each request but the first asks for what follows. The states:
 *
 *     connecting ──> streaming <──> reconnecting        and from each of them, once, to
 *     completed (a `done` event) | stopped (`done`, cancelled) | failed (an `error` event, or nothing left to try)
 *
 * Only a terminal event ends a run. A response that ends without one was cut, however cleanly it ended.
 */

import { Interruption, ProblemError, ProtocolError } from "./llmstream/errors.js";
import { EventStreamParser, endOf, isTerminal, parseCursor, parseEvent, terminalOf } from "./llmstream/events.js";
import { Line, extended } from "./llmstream/line.js";
import { Pacer } from "./llmstream/pacer.js";

export { ConnectionLostError, LLMStreamError, ProblemError, ProtocolError } from "./llmstream/errors.js";

const HEARTBEATS_MISSED = 2.5;
const STARTS_WHILE_OVERLOADED = 4;
const TERMINAL_AFTER_CANCEL = 2_000;
const SLOW_UPLOAD = 8; // bytes a millisecond
const OVERLOADED = "urn:problem-type:flask-llmstream:overloaded";
const STOPPED = { done: true, cancelled: true };
const DEFAULTS = { retries: 8, connectTimeout: 15_000, pace: true };
const TOLD = {
  restarted: "onRestart",
  status: "onStatus",
  reasoning: "onReasoning",
  tool: "onTool",
  data: "onData",
};
const WAKING = [
  [globalThis, "online"],
  [globalThis.document, "visibilitychange"],
];

class Run {
  id = null;
  location = null;
  cursor; // goes with `text`: both say what has been handed out, where `#seen` says what has arrived
  text;
  key;
  state = "connecting";
  done;
  #options;
  #start; // the request that starts it; null where it is only resumed
  #seen;
  #line = null;
  #pacer;
  #tokens = []; // each iterator has its own place in it
  #waiting = []; // iterators that have read all of it
  #sent = false; // whether a start may have reached the server
  #starts = 0;
  #failures = 0; // attempts since the last that brought something
  #retry = 1_000;
  #heartbeat = 5_000;
  #pausing = null; // between two attempts: {end, asked}
  #over = false; // nothing more is to be read
  #settled = false;
  #error = null;
  #ended = deferred();
  #located = deferred();
  #stopping = null;
  #unstoppable = null; // why a stop could not be carried out

  constructor(start, { location = null, after = null, text = "" }, options) {
    this.#options = { ...DEFAULTS, ...options };
    this.#start = start;
    this.#pacer = new Pacer(this.#options.pace);
    this.#seen = after === null ? null : parseCursor(after);
    if (this.#seen === undefined) throw new TypeError(`"${after}" is not a cursor such as run.cursor.`);
    this.cursor = after;
    this.text = text;
    this.key = start?.key ?? null;
    this.done = this.#ended.promise;
    this.done.catch(() => {}); // no unhandled rejection where only the iterator is used
    if (location) this.#locate(location);
    for (const [target, type] of WAKING) target?.addEventListener?.(type, this.#wake);
    this.#options.signal?.addEventListener("abort", this.#abort);
    if (this.#options.signal?.aborted) this.#abort();
    this.#follow();
  }

  async *[Symbol.asyncIterator]() {
    let tokens = this.#tokens;
    let next = 0;
    while (true) {
      if (tokens !== this.#tokens) [tokens, next] = [this.#tokens, 0]; // restarted
      if (next < tokens.length) yield tokens[next++];
      else if (this.#error) throw this.#error;
      else if (this.#settled) return;
      else await new Promise((resolve) => this.#waiting.push(resolve));
    }
  }

  stop() {
    return (this.#stopping ??= this.#stop());
  }

  async #stop() {
    this.#start?.release(); // the same question, asked from now on, is another run
    this.#pacer.smooth = false;
    this.#pacer.flush();
    this.#pausing?.end();
    await this.#located.promise;
    try {
      const known = !this.#settled && (await this.#cancel());
      this.#pausing?.end(); // the terminal event has the usage, so it is worth a moment
      if (known) await Promise.race([this.done.catch(() => {}), pause(TERMINAL_AFTER_CANCEL)]);
    } finally {
      this.#settle("stopped", STOPPED);
    }
    if (this.#unstoppable) throw this.#unstoppable;
  }

  /** Whether the server knows the run, and so will end it. */
  async #cancel() {
    if (!this.location) throw new ProtocolError("The run can't be stopped: CORS must expose the header Location.");
    for (let failures = 0; ; failures++) {
      try {
        const response = await this.#ask("POST", extended(this.location, "/cancel"));
        if (response.ok) return true;
        if ([404, 410].includes(response.status)) return false;
        throw await Interruption.orProblem(response, isPassing);
      } catch (error) {
        if (!(error instanceof Interruption)) throw error;
        if (failures >= this.#options.retries) throw error.verdict;
        await pause(error.wait(this.#retry, failures));
      }
      if (this.#settled) return false;
    }
  }

  async #ask(method, url) {
    const line = new Line(this.#options.connectTimeout);
    try {
      const headers = await this.#headers({ Accept: "application/json" });
      const response = await line.fetch(url, { method, headers, credentials: this.#options.credentials });
      return new Response((await line.heed(response.text())) || null, response);
    } finally {
      line.drop();
    }
  }

  async #follow() {
    await null; // the first callback comes when the caller has the run in hand
    while (!this.#over) {
      try {
        await this.#attempt();
        if (!this.#over) throw new Interruption("the response ended before the run did");
      } catch (error) {
        if (this.#over) return;
        if (error instanceof Interruption) await this.#rest(error);
        else this.#fail(error);
      }
    }
  }

  async #attempt() {
    const { url, limit, ...init } = this.#next();
    init.headers = await this.#headers({ Accept: "text/event-stream", ...init.headers });
    if (this.#needless()) return this.#settle("stopped", STOPPED);
    this.#sent ||= init.method === "POST";
    const line = (this.#line = new Line(limit));
    try {
      const response = await line.fetch(url, { ...init, credentials: this.#options.credentials });
      if (response.status === 204 && this.location) return await this.#adopt();
      if (!response.ok) throw await Interruption.orProblem(response, this.#mayPass);
      this.#open(response);
      await this.#read(response, line);
    } finally {
      line.drop();
    }
  }

  /** Whether there is nothing to be stopped, and so nothing to be learned by starting it. */
  #needless() {
    return this.#stopping && !this.#sent && !this.location;
  }

  /** A start goes out again, under its key, until an answer to it has said where the run is. */
  #next() {
    const { connectTimeout } = this.#options;
    // A tail is answered at once, or not at all: connections that the browser keeps may have died with the line.
    const limit = Math.min(connectTimeout, this.#heartbeat * 2 ** this.#failures);
    const after = this.#seen?.text;
    if (this.location) return { method: "GET", url: extended(this.location, "/events", after), limit };
    const { url, body, key } = this.#start;
    if (after) return { method: "GET", url: extended(url, "", after), limit };
    const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
    return { method: "POST", url, body, headers, limit: connectTimeout + body.length / SLOW_UPLOAD };
  }

  async #headers(ours) {
    const { headers } = this.#options;
    const all = new Headers(typeof headers === "function" ? await headers() : headers);
    for (const [name, value] of Object.entries(ours)) all.set(name, value);
    return all;
  }

  #mayPass = (error, ours) => {
    if (this.location || this.#seen) return isPassing(error);
    if (!ours) return [502, 503, 504].includes(error.status); // a proxy's page: perhaps the start got through
    this.#sent = false;
    return error.type === OVERLOADED && error.retryAfter !== null && ++this.#starts < STARTS_WHILE_OVERLOADED;
  };

  #open(response) {
    const type = response.headers.get("Content-Type") ?? "nothing";
    if (!/^text\/event-stream\b/i.test(type)) throw new ProtocolError(`The server sent ${type}, no event stream.`);
    const location = response.headers.get("Location");
    if (location) this.#locate(new URL(location, response.url).href);
    this.#located.resolve();
    this.#change("streaming");
  }

  #locate(location) {
    this.location = location;
    this.id = decodeURIComponent(new URL(location).pathname.split("/").pop());
    this.#located.resolve();
  }

  async #read(response, line) {
    line.limit = Infinity; // until the server has said how often it will be heard
    const parser = new EventStreamParser({
      maxEventSize: this.#options.maxEventSize,
      onBlock: (block) => this.#receive(block, line),
      onRetry: (milliseconds) => (this.#retry = milliseconds),
      onComment: (comment) => {
        const beat = /^ ?heartbeat=([0-9.]+)$/.exec(comment);
        if (!beat) line.progressed = true;
        else line.limit = HEARTBEATS_MISSED * (this.#heartbeat = beat[1] * 1_000 || Infinity);
      },
    });
    for await (const bytes of line.chunks(response)) if (!this.#over) parser.feed(bytes);
  }

  #receive({ id, data, event: type }, line) {
    if (this.#over) return;
    const place = id && parseCursor(id);
    if (place) {
      if (!this.#advance(place)) return;
      line.progressed = true;
    }
    if (data === undefined || type !== "message") return;
    const event = parseEvent(data);
    if (isTerminal(event)) {
      this.#over = true;
      line.limit = line.silence + TERMINAL_AFTER_CANCEL; // for the response's end, which frees the connection
    }
    this.#pacer.push(() => this.#hand(event, place ? id : null));
  }

  /** Whether the event is the next one; false when it has been read before. */
  #advance(place) {
    if (!this.#seen) {
      this.id = place.run;
      this.#seen = { ...place, n: 0, text: null };
      if (place.n === 0) [this.#seen, this.cursor] = [place, place.text];
    }
    const { run, epoch, n } = this.#seen;
    if (place.run !== run) throw new ProtocolError(`The server sent run ${place.run} instead of run ${run}.`);
    const last = place.epoch === epoch ? n : 0; // a new writer counts from 1
    if (place.epoch < epoch || place.n <= last) return false;
    if (place.n > last + 1) {
      const verdict = new ProtocolError(`The server left something out before the event ${place.text}.`);
      throw new Interruption(verdict.message, { verdict });
    }
    this.#seen = place;
    return true;
  }

  #hand(event, id) {
    if (id) this.cursor = id;
    this.#tell("onEvent", event, id);
    if (typeof event.token === "string") {
      this.text += event.token;
      this.#tokens.push(event.token);
      this.#tell("onToken", event.token);
    } else if (isTerminal(event)) {
      this.#finish(event);
    } else if ("progress" in event) {
      this.#tell("onProgress", event.progress, event.message);
    } else {
      if ("restarted" in event) [this.text, this.#tokens] = ["", []];
      for (const [kind, callback] of Object.entries(TOLD)) if (kind in event) this.#tell(callback, event[kind]);
    }
    this.#wakeIterators();
  }

  /** Nothing follows the cursor, yet no terminal event was seen: the page had read it before it was reloaded. */
  async #adopt() {
    const response = await this.#ask("GET", this.location);
    if (!response.ok) throw await Interruption.orProblem(response, isPassing);
    const terminal = terminalOf(parseEvent(await response.text()));
    if (!terminal) throw new Interruption("the server had nothing more, though the run has not ended");
    this.#over = true;
    this.#finish(terminal);
  }

  #finish(event) {
    if (!("error" in event)) return this.#settle(event.cancelled ? "stopped" : "completed", event);
    const plain = { type: "about:blank", title: "The run failed", detail: String(event.error) };
    this.#settle("failed", new ProblemError(event.problem instanceof Object ? event.problem : plain));
  }

  #fail(error) {
    this.#over = true;
    if (!this.#stopping) return this.#settle("failed", error);
    if (this.location) return; // stop() has the last word
    if (!(error instanceof ProblemError)) this.#unstoppable = error; // a refused start needs no stop
    this.#settle("stopped", STOPPED);
  }

  #settle(state, outcome) {
    this.#pacer.flush();
    if (this.#settled) return;
    if (!this.#over) this.#line?.drop();
    this.#over = this.#settled = true;
    this.#start?.release();
    for (const [target, type] of WAKING) target?.removeEventListener?.(type, this.#wake);
    this.#options.signal?.removeEventListener("abort", this.#abort);
    this.#pausing?.end();
    this.#located.resolve();
    if (state === "failed") {
      this.#error = outcome;
      this.#ended.reject(outcome);
    } else {
      this.#ended.resolve(endOf(outcome, this.text));
    }
    this.#change(state);
    this.#wakeIterators();
  }

  async #rest(interruption) {
    const { retries } = this.#options;
    const offline = globalThis.navigator?.onLine === false; // then a failure says nothing about the server
    this.#failures = this.#line?.progressed ? 0 : Math.min(this.#failures + 1, offline ? retries : Infinity);
    if (this.#needless()) return this.#settle("stopped", STOPPED);
    if (this.#failures > retries) return this.#fail(interruption.verdict);
    if (this.#sent || this.location) this.#change("reconnecting");
    const { promise, resolve } = deferred();
    this.#pausing = { end: resolve, asked: interruption.retryAfter > 0 };
    const timer = setTimeout(resolve, interruption.wait(this.#retry, this.#failures));
    await promise;
    clearTimeout(timer);
    this.#pausing = null;
  }

  #wake = ({ type }) => {
    if (type === "online") this.#failures = 0;
    else if (document.visibilityState === "hidden") return this.#pacer.flush();
    if (this.#pausing?.asked === false) this.#pausing.end();
    else if (!this.#pausing && this.#line?.silence > this.#heartbeat) this.#line.drop("the line was silent");
  };

  #abort = () => {
    this.stop().catch(report);
  };

  #change(state) {
    if (state === this.state) return;
    this.state = state;
    this.#tell("onState", state);
  }

  #tell(callback, ...args) {
    try {
      this.#options[callback]?.(...args);
    } catch (error) {
      report(error);
    }
  }

  #wakeIterators() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

const open = new Map(); // what starts a run: {key, starts} while it is open on this page

/** Starts a run. A call with the URL and body of one that is open on this page reads that one too. */
export function stream(url, body = {}, options = {}) {
  const { href } = new URL(url, base());
  const payload = JSON.stringify(body);
  const question = `${href}\n${payload}`;
  const known = open.get(question);
  const key = options.key ?? known?.key ?? randomKey();
  const entry = known?.key === key ? known : { key, starts: new Set() };
  const start = { url: href, body: payload, key, release };
  function release() {
    entry.starts.delete(start);
    if (!entry.starts.size && open.get(question) === entry) open.delete(question);
  }
  entry.starts.add(start);
  if (!known) open.set(question, entry);
  return new Run(start, {}, options);
}

/** Attaches to a run that exists, such as one that was started before the page was reloaded. */
export function resume(location, { after, text, ...options } = {}) {
  return new Run(null, { location: new URL(location, base()).href, after, text }, options);
}

const base = () => globalThis.document?.baseURI ?? globalThis.location?.href;
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const report = (error) => (globalThis.reportError ?? console.error)(error);
const isPassing = ({ status }) => status >= 500 || [408, 425, 429].includes(status);

function deferred() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
}

/** 128 random bits. `randomUUID` is missing on pages that did not come by HTTPS. */
function randomKey() {
  if (globalThis.crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
