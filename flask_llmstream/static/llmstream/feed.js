import { Attempts } from "./attempts.js";
import { Interruption, isPassing, located } from "./errors.js";
import { parseCursor, parseEvent } from "./events.js";
import { extended } from "./line.js";
import { tell } from "./told.js";

const LONGEST_REST = 86_400; // seconds
const TOLD = { started: "onStarted", ended: "onEnded", forgotten: "onForgotten" };

/**
 * Follows what an owner's runs do: first all that are live, then each that starts, ends or is forgotten. It has no
 * end: what is lost is asked for again, for as long as it takes.
 *
 *     connecting ──> streaming <──> reconnecting        and from each of them, once, to
 *     closed (by `close()`) | failed (the server does not let this page in)
 *
 * Browsers allow six connections to a server that speaks HTTP/1.1, over all tabs. So a feed gives its own up while
 * nobody sees the page.
 */
export class Feed {
  runs = []; // the live ones, the oldest first
  state = "connecting";
  #url;
  #options;
  #attempts;
  #seen = null;
  #response;

  constructor(url, options) {
    this.#url = url;
    this.#options = options;
    const onHidden = () => this.#attempts.line?.drop("nobody sees the page");
    this.#attempts = new Attempts({ ...options, retries: Infinity, onHidden });
    this.#follow();
  }

  close() {
    this.#end("closed");
  }

  get #over() {
    return this.state === "closed" || this.state === "failed";
  }

  async #follow() {
    await null; // the first callback comes when the caller has the feed in hand
    while (!this.#over) {
      try {
        await visible();
        if (!this.#over) await this.#attempt();
        throw new Interruption("the response ended");
      } catch (error) {
        if (this.#over) return;
        if (!(error instanceof Interruption)) return this.#end("failed", error);
        this.#attempts.another();
        this.#change("reconnecting");
        await this.#attempts.pause(error);
      }
    }
  }

  async #attempt() {
    const { tailTimeout: limit } = this.#attempts;
    const headers = await this.#attempts.headers({ Accept: "text/event-stream" });
    const url = extended(this.#url, "", this.#seen?.text);
    await this.#attempts.attempt({ method: "GET", url, headers, limit }, async (response) => {
      if (!response.ok) throw await this.#refused(response);
      this.#response = response;
      this.#change("streaming");
      await this.#attempts.hear(response, (block, line) => this.#receive(block, line));
    });
  }

  /** A cursor that the server does not know, or no longer, is no reason to give up: the runs are told anew. */
  async #refused(response) {
    const lost = this.#seen && [400, 404, 410].includes(response.status);
    if (lost) this.#seen = null;
    return Interruption.orProblem(response, (error) => lost || isPassing(error), LONGEST_REST);
  }

  #receive({ id, data, event: type }, line) {
    if (this.#over) return;
    const event = data !== undefined && type === "message" ? parseEvent(data) : {};
    const place = id ? parseCursor(id) : undefined;
    if (place) {
      if (this.#seen && !isLater(place, this.#seen) && !event.runs) return; // what is told anew goes back in time
      this.#seen = place;
      line.progressed = true;
    }
    if (event.runs) this.#tell("onRuns", (this.runs = event.runs.map(this.#locate)));
    for (const kind of Object.keys(TOLD).filter((kind) => kind in event)) {
      const run = this.#locate(event[kind]);
      this.runs = this.runs.filter(({ id }) => id !== run.id);
      if (kind === "started") this.runs.push(run);
      this.#tell(TOLD[kind], run);
    }
  }

  #locate = (run) => (run.links ? located(run, run.links.self, this.#response) : run);

  #end(state, error) {
    if (this.#over) return;
    this.#change(state);
    this.#attempts.close();
    this.#attempts.line?.drop();
    if (error) this.#tell("onError", error);
  }

  #change(state) {
    if (state === this.state) return;
    this.state = state;
    this.#tell("onState", state);
  }

  #tell(callback, what) {
    tell(this.#options, callback, what);
  }
}

const isLater = (place, seen) => place.epoch > seen.epoch || (place.epoch === seen.epoch && place.n > seen.n);

/** Until somebody sees the page; at once where there is none, as in a worker. */
async function visible() {
  if (globalThis.document?.visibilityState !== "hidden") return;
  await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}
