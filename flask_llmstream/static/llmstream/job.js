import { Attempts } from "./attempts.js";
import {
  ConnectionLostError,
  Interruption,
  LLMStreamError,
  ProblemError,
  ProtocolError,
  isPassing,
  seconds,
} from "./errors.js";
import { endOf, failureOf, isTerminal, terminalOf } from "./events.js";
import { Memory } from "./memory.js";
import { Run } from "./run.js";
import { Start, jsonOf } from "./start.js";
import { callsFor, report, tell } from "./told.js";
import { deferred } from "./waiting.js";

const LONG_POLL = 20; // seconds
const POLL_AGAIN = 2; // seconds, where the server does not say
const EVENTS_WITHIN = 5_000; // the server's first words are there at once, unless a proxy keeps them
const EVENTS_RETRIES = 2;
const OF_THE_READER = ["headers", "credentials", "connectTimeout", "maxEventSize", "pace"];
const STATES = { streaming: "following", reconnecting: "reconnecting" };
const LIVE = ["queued", "in_progress"];
const CUT = ["length", "content_filter", "log_full"];
const STOPPED = { done: true, cancelled: true };
const GONE = [404, 410];

/**
 * Sends the input of a job, and follows the run that it becomes, until that has ended.
 *
 *     starting ──> following <──> reconnecting        and from each of them, once, to
 *     completed (it may be incomplete) | stopped | failed | closed (by `close()`: the job goes on)
 *
 * It reads the run's events. Where they don't get through, as behind some proxies, it asks after the status instead,
 * and tells of the difference between two answers as if it had come by events. Whatever became of the events, what the
 * status says is so.
 */
export class Job {
  id = null;
  location = null;
  key;
  state = "starting";
  status = null; // the server's word
  progress = null;
  cursor; // goes with `text`
  text;
  done;
  #options;
  #question; // what starts it; null where it is only followed
  #start;
  #attempts;
  #memory;
  #base; // what the addresses of its events and of stop begin with
  #reader = null; // the run whose events are read
  #left = new AbortController(); // by which it is read no longer
  #attempt = 1; // the server's
  #failed = false; // whether an event said so
  #tag = null; // of the last status
  #rest = POLL_AGAIN;
  #patient = true; // whether the way to the server bears a long poll
  #events = []; // each iterator has its own place in it
  #waiting = []; // iterators that have read all of it
  #settled = false;
  #error = null;
  #ended = deferred();
  #located = deferred();
  #stopping = null;
  #unstoppable = null; // why a stop could not be carried out

  constructor(question, { location = null, key = null, after = null, text = "" }, options) {
    this.#options = options;
    this.#question = question;
    this.location = location;
    this.key = question?.key ?? key;
    [this.cursor, this.text] = [after, text];
    this.done = this.#ended.promise;
    this.done.catch(() => {}); // no unhandled rejection where only the iterator is used
    this.#attempts = new Attempts(options);
    this.#memory = options.remember === undefined ? null : new Memory(options.remember);
    if (question) this.#prepare(question);
    options.signal?.addEventListener("abort", this.#abort);
    if (options.signal?.aborted) this.#abort();
    this.#live();
  }

  async *[Symbol.asyncIterator]() {
    for (let next = 0; ;) {
      if (next < this.#events.length) yield this.#events[next++];
      else if (this.#error) throw this.#error;
      else if (this.#settled) return;
      else await new Promise((resolve) => this.#waiting.push(resolve));
    }
  }

  stop() {
    return (this.#stopping ??= this.#stop());
  }

  async #stop() {
    this.#question?.release(); // the same input, sent from now on, is another job
    this.#start?.withdraw(new LLMStreamError("The job was stopped before it had begun."));
    this.#attempts.hurry();
    await this.#located.promise;
    if (!this.#settled) {
      const reader = (this.#reader ??= this.#newReader()); // the status has no stop of its own
      try {
        await reader.stop();
      } finally {
        await reader.done.then(this.#finish, this.#fail);
      }
    }
    if (this.#unstoppable) throw this.#unstoppable;
  }

  close() {
    if (this.#settled || this.#stopping) return;
    this.#unstoppable = new LLMStreamError("The job is followed no longer.");
    this.#start?.giveUp(this.#unstoppable);
    this.#settle("closed", this.#unstoppable);
  }

  #prepare(question) {
    this.#memory?.keep(question);
    const { credentials } = this.#options;
    const { connectTimeout: within } = this.#attempts;
    const onUpload = (loaded, total) => this.#hand({ upload: { loaded, total } });
    this.#start = new Start(question, this.#attempts, { credentials, within, onUpload });
  }

  async #live() {
    await null; // the first callback comes when the caller has the job in hand
    try {
      const run = this.#start ? await this.#send() : await this.#poll();
      if (this.#settled) return;
      const listens = this.#options.follow !== "poll" && LIVE.includes(run.status);
      if (!listens) this.#catchUp(run); // else the events tell all of it
      this.status = run.status;
      this.#finish((listens ? await this.#listen() : terminalOf(run)) ?? (await this.#wait({ atOnce: listens })));
    } catch (error) {
      this.#fail(error);
    }
  }

  async #send() {
    const { response, json: run } = await this.#start.answer();
    this.#rest = seconds(response.headers.get("Retry-After")) ?? POLL_AGAIN;
    this.#locate(response, run);
    return run;
  }

  #locate(response, { id, links }) {
    const link = this.location ?? response.headers.get("Location") ?? links?.self; // the last where CORS hides it
    if (!link) throw new ProtocolError("The server's answer does not say where the run is.");
    this.location = new URL(link, response.url).href;
    this.#base = links?.events ? new URL(links.events, response.url).href.replace(/\/events$/, "") : this.location;
    this.id = id ?? decodeURIComponent(new URL(this.#base).pathname.split("/").pop());
    this.#memory?.locate(this.key, this.location);
    this.#located.resolve();
    this.#change("following");
  }

  /** Reads the events to their end; null if they broke off before, for whatever reason. */
  async #listen() {
    this.#reader ??= this.#newReader();
    try {
      return await this.#reader.done;
    } catch (error) {
      if (this.#failed) throw error;
      this.#reader = this.#tag = null;
      return null;
    }
  }

  #newReader() {
    const place = { location: this.#base, after: this.cursor, text: this.text };
    const given = Object.entries(this.#options).filter(([name]) => OF_THE_READER.includes(name));
    return new Run(null, place, {
      ...Object.fromEntries(given),
      retries: EVENTS_RETRIES,
      openWithin: EVENTS_WITHIN,
      left: this.#left.signal,
      onEvent: (event, id) => this.#hear(event, id),
      onState: (state) => state in STATES && !this.#settled && this.#change(STATES[state]),
    });
  }

  #hear(event, id) {
    if (isTerminal(event)) [this.cursor, this.#failed] = [id ?? this.cursor, "error" in event];
    else this.#hand(event, id);
  }

  /** Asks after the status until it is an end. */
  async #wait({ atOnce }) {
    for (let rests = !atOnce; ; rests = true) {
      if (rests) await this.#attempts.pause(new Interruption("it has not ended", { retryAfter: this.#rest }));
      if (this.#settled) return STOPPED;
      const run = await this.#poll();
      if (run) this.#catchUp(run);
      const terminal = run && terminalOf(run);
      if (terminal) return terminal;
    }
  }

  /** What the status says; null if that is nothing new. */
  #poll() {
    return this.#attempts.persist(async () => {
      const wait = this.#tag && this.#patient ? LONG_POLL : 0;
      try {
        return await this.#ask(wait);
      } catch (error) {
        if (!(error instanceof Interruption)) throw error;
        if (!error.atOnce) this.#patient = false;
        if (this.state === "following") this.#change("reconnecting");
        throw error;
      }
    });
  }

  async #ask(wait) {
    const url = new URL(this.location);
    if (wait) url.searchParams.set("wait", wait);
    const known = this.#tag ? { "If-None-Match": this.#tag } : {};
    const headers = await this.#attempts.headers({ Accept: "application/json", ...known });
    const limit = this.#attempts.connectTimeout + wait * 1_000;
    let run = null;
    await this.#attempts.attempt({ method: "GET", url: url.href, headers, limit }, async (response) => {
      const same = response.status === 304;
      if (!response.ok && !same) throw await Interruption.orProblem(response, isPassing);
      if (!same) run = await jsonOf(new Response(await this.#attempts.line.heed(response.text()), response));
      this.#tag = response.headers.get("ETag") ?? (same ? this.#tag : null);
      this.#rest = seconds(response.headers.get("Retry-After")) ?? POLL_AGAIN;
      if (run) this.#locate(response, run);
      else this.#change("following");
    });
    return run;
  }

  /** Tells what a status has that was not known, as if it had come by events. */
  #catchUp({ attempt, status, progress, text, cursor }) {
    const whole = text ?? "";
    if (attempt > this.#attempt || !whole.startsWith(this.text)) this.#hand({ restarted: attempt });
    if (status !== this.status && LIVE.includes(status)) this.#hand({ status });
    if (progress && !sameProgress(progress, this.progress)) this.#hand(withoutNull(progress));
    if (whole.length > this.text.length) this.#hand({ token: whole.slice(this.text.length) });
    this.cursor = cursor ?? this.cursor;
  }

  #hand(event, id = null) {
    if (this.#settled) return;
    if (id) this.cursor = id;
    this.#note(event);
    this.#events.push(event);
    this.#tell("onEvent", event, id);
    for (const call of callsFor(event)) this.#tell(...call);
    this.#wakeIterators();
  }

  #note(event) {
    if (event.upload) return;
    this.status = event.status === "queued" || "restarted" in event ? "queued" : "in_progress";
    if ("restarted" in event) [this.#attempt, this.text, this.progress] = [event.restarted, "", null];
    else if ("progress" in event) this.progress = { progress: event.progress, message: event.message ?? null };
    else if (typeof event.token === "string") this.text += event.token;
  }

  #finish = (event) => {
    if ("error" in event) return this.#fail(failureOf(event));
    this.#settle(event.cancelled ? "stopped" : "completed", event);
  };

  #fail = (error) => {
    const unsent = this.#stopping && !this.location;
    if (!unsent) return this.#settle("failed", error);
    if (this.#start.isOut && !(error instanceof ProblemError)) this.#unstoppable = error;
    this.#settle("stopped", STOPPED);
  };

  #settle(state, outcome) {
    if (this.#settled) return;
    this.#settled = true;
    this.#question?.release();
    this.#attempts.close();
    this.#attempts.line?.drop();
    this.#left.abort(outcome);
    this.#options.signal?.removeEventListener("abort", this.#abort);
    if (isForgettable(this.location, state, outcome)) this.#memory?.forget(this.key);
    if (outcome instanceof Error) {
      if (state === "failed") this.#error = outcome;
      if (outcome instanceof ProblemError && this.location) this.status = "failed";
      this.#ended.reject(outcome);
    } else {
      this.status = statusOf(outcome);
      this.#ended.resolve(endOf(outcome, this.text));
    }
    this.#located.resolve();
    this.#change(state);
    this.#wakeIterators();
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

/** As an event has it. */
const withoutNull = ({ progress, message }) => (message === null ? { progress } : { progress, message });

const sameProgress = (one, other) =>
  one.progress === other?.progress && (one.message ?? null) === (other.message ?? null);

/** The server's word for an end that did not fail. */
function statusOf({ cancelled, finish_reason: reason }) {
  if (cancelled) return "cancelled";
  return CUT.includes(reason) ? "incomplete" : "completed";
}

/** Whether there is nothing that a reloaded page could find; a start that got no answer can be repeated. */
function isForgettable(location, state, outcome) {
  if (location) return state === "failed" && GONE.includes(outcome.status);
  return !(outcome instanceof ConnectionLostError);
}
