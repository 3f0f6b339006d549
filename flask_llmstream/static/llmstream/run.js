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

import { Attempts } from "./attempts.js";
import { Interruption, ProblemError, ProtocolError, isOneOf, isPassing } from "./errors.js";
import { endOf, failureOf, isTerminal, parseCursor, parseEvent, terminalOf } from "./events.js";
import { Feed } from "./feed.js";
import { extended } from "./line.js";
import { Pacer } from "./pacer.js";
import { callsFor, report, tell } from "./told.js";
import { deferred, pause } from "./waiting.js";

const STARTS_WHILE_OVERLOADED = 4;
const TERMINAL_AFTER_CANCEL = 2_000;
const SLOW_UPLOAD = 8; // bytes a millisecond
const PASSING = ["overloaded", "shutting-down"];
const STOPPED = { done: true, cancelled: true };

export class Run {
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
  #attempts;
  #pacer;
  #tokens = []; // each iterator has its own place in it
  #waiting = []; // iterators that have read all of it
  #sent = false; // whether a start may have reached the server
  #starts = 0;
  #over = false; // nothing more is to be read
  #settled = false;
  #error = null;
  #ended = deferred();
  #located = deferred();
  #stopping = null;
  #unstoppable = null; // why a stop could not be carried out

  /** @param options those of the page, and `left`, an AbortSignal by which it is read no longer, and goes on */
  constructor(start, { location = null, after = null, text = "" }, options) {
    this.#options = options;
    this.#start = start;
    this.#pacer = new Pacer(options.pace ?? true);
    this.#seen = after === null ? null : parseCursor(after);
    if (this.#seen === undefined) throw new TypeError(`"${after}" is not a cursor such as run.cursor.`);
    this.cursor = after;
    this.text = text;
    this.key = start?.key ?? null;
    this.done = this.#ended.promise;
    this.done.catch(() => {}); // no unhandled rejection where only the iterator is used
    if (location) this.#locate(location);
    this.#attempts = new Attempts({ ...options, onHidden: () => this.#pacer.flush() });
    this.#options.signal?.addEventListener("abort", this.#abort);
    if (this.#options.signal?.aborted) this.#abort();
    options.left?.addEventListener("abort", () => this.#settle("failed", options.left.reason));
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
    this.#attempts.hurry();
    await this.#located.promise;
    try {
      const known = !this.#settled && (await this.#cancel());
      this.#attempts.hurry(); // the terminal event has the usage, so it is worth a moment
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
        const response = await this.#attempts.ask("POST", extended(this.location, "/cancel"));
        if (response.ok) return true;
        if ([404, 410].includes(response.status)) return false;
        throw await Interruption.orProblem(response, isPassing);
      } catch (error) {
        if (!(error instanceof Interruption)) throw error;
        if (failures >= this.#attempts.retries) throw error.verdict;
        await pause(error.wait(this.#attempts.retry, failures));
      }
      if (this.#settled) return false;
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
    const next = this.#next();
    const headers = await this.#attempts.headers({ Accept: "text/event-stream", ...next.headers });
    if (this.#needless()) return this.#settle("stopped", STOPPED);
    this.#sent ||= next.method === "POST";
    await this.#attempts.attempt({ ...next, headers }, async (response) => {
      if (response.status === 204 && this.location) return await this.#adopt();
      if (!response.ok) await this.#refused(response);
      this.#open(response);
      await this.#attempts.hear(response, (block, line) => this.#receive(block, line));
    });
  }

  /** Whether there is nothing to be stopped, and so nothing to be learned by starting it. */
  #needless() {
    return this.#stopping && !this.#sent && !this.location;
  }

  /** A start goes out again, under its key, until an answer to it has said where the run is. */
  #next() {
    const { tailTimeout: limit, connectTimeout } = this.#attempts;
    const after = this.#seen?.text;
    if (this.location) return { method: "GET", url: extended(this.location, "/events", after), limit };
    const { url, body, key } = this.#start;
    if (after) return { method: "GET", url: extended(url, "", after), limit };
    const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
    return { method: "POST", url, body, headers, limit: connectTimeout + body.length / SLOW_UPLOAD };
  }

  #mayPass = (error, ours) => {
    if (this.location || this.#seen) return isPassing(error);
    if (!ours) return [502, 503, 504].includes(error.status); // a proxy's page: perhaps the start got through
    this.#sent = false;
    return isOneOf(error, PASSING) && error.retryAfter !== null && ++this.#starts < STARTS_WHILE_OVERLOADED;
  };

  async #refused(response) {
    const error = await Interruption.orProblem(response, this.#mayPass);
    if (error instanceof ProblemError) this.#find(response); // of a run that failed before it said anything
    throw error;
  }

  #open(response) {
    const type = response.headers.get("Content-Type") ?? "nothing";
    if (!/^text\/event-stream\b/i.test(type)) throw new ProtocolError(`The server sent ${type}, no event stream.`);
    this.#find(response);
    this.#located.resolve();
    this.#change("streaming");
  }

  #find(response) {
    const location = response.headers.get("Location");
    if (location) this.#locate(new URL(location, response.url).href);
  }

  #locate(location) {
    this.location = location;
    this.id = decodeURIComponent(new URL(location).pathname.split("/").pop());
    this.#located.resolve();
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
    if (isTerminal(event)) return this.#conclude(event);
    if (typeof event.token === "string") {
      this.text += event.token;
      this.#tokens.push(event.token);
    } else if ("restarted" in event) {
      [this.text, this.#tokens] = ["", []];
    }
    for (const call of callsFor(event)) this.#tell(...call);
    this.#wakeIterators();
  }

  /** Nothing follows the cursor, yet no terminal event was seen: the page had read it before it was reloaded. */
  async #adopt() {
    const terminal = await this.#askForEnd();
    this.#over = true;
    this.#finish(terminal);
  }

  async #askForEnd() {
    const response = await this.#attempts.ask("GET", this.location);
    if (!response.ok) throw await Interruption.orProblem(response, isPassing);
    const terminal = terminalOf(parseEvent(await response.text()));
    if (!terminal) throw new Interruption("the server had nothing more, though the run has not ended");
    return terminal;
  }

  /** The terminal event has come. A large result is not in the log: the run's JSON has it. */
  async #conclude(event) {
    if (!("result_size" in event) || "result" in event || !this.location) return this.#finish(event);
    try {
      const { result } = await this.#attempts.persist(() => this.#askForEnd());
      this.#finish({ ...event, result });
    } catch (error) {
      this.#settle("failed", error);
    }
  }

  #finish(event) {
    if (!("error" in event)) return this.#settle(event.cancelled ? "stopped" : "completed", event);
    this.#settle("failed", failureOf(event));
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
    if (!this.#over) this.#attempts.line?.drop();
    this.#over = this.#settled = true;
    this.#start?.release();
    this.#attempts.close();
    this.#options.signal?.removeEventListener("abort", this.#abort);
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
    const another = this.#attempts.another();
    if (this.#needless()) return this.#settle("stopped", STOPPED);
    if (!another) return this.#fail(interruption.verdict);
    if (this.#sent || this.location) this.#change("reconnecting");
    await this.#attempts.pause(interruption);
  }

  #abort = () => {
    this.stop().catch(report);
  };

  #change(state) {
    if (state === this.state) return;
    this.state = state;
    this.#tell("onState", state);
  }

  #tell(callback, ...args) {
    tell(this.#options, callback, ...args);
  }

  #wakeIterators() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
