import { meaningOf } from "./closing.js";
import { ConnectionLostError, Interruption, ProblemError, ProtocolError, isPassing } from "./errors.js";
import { parseEvent } from "./events.js";
import { VoiceSocket } from "./voice-socket.js";
import { pause } from "./waiting.js";

const RETRY = 250; // milliseconds before the second attempt; each further one waits twice as long,
const DOUBLINGS = 4; // so often
const STARTS = 4;
const STEADY = 5_000; // milliseconds after which a connection counts as one that holds
const RESUME_WITHIN = 8_000;
const ASK_WITHIN = 5_000;
const BYE_WITHIN = 1_000;
const PATIENCE = 2; // seconds that a start waits where the server asks for it: a person is watching
const KEPT = ["message", "interrupt"]; // what is still worth saying after a reconnect
const MOST_KEPT = 32;
const BROKEN = 1011; // an error of the server's, which is unlikely to be there twice unless it is always
const MOST_SPOKEN = 50; // frames: a second

/**
 * What this page and the server have in common while a call lasts, over as many WebSockets as that takes.
 *
 *     connecting ──> up <──> down        and from each of them, once, over: ended, or failed with an error
 *
 * Up is a socket on which the server has said `ready` or `resumed`. `seq` is the last control message that came: a
 * resume names it, and the server sends again what follows.
 */
export class Session {
  seq = 0;
  rtt = null;
  dropped = 0; // frames of speech that had no way to go
  #url;
  #options;
  #socket = null;
  #ready = null; // what the server said of the session
  #refused = null; // why it wants none
  #up = false;
  #upAt = 0;
  #over = false;
  #unsent = [];
  #spoken = [];
  #failures = 0; // since a connection held
  #lostAt = null;
  #endPause = null;

  /**
   * @param url the WebSocket's
   * @param options `greeting(token)`, the first message, or a promise of it, without a token at the start;
   *   `onMessage(message)`, each that is new; `onAudio(buffer)`; `onUp(message)`, `onDown()`; `onOver({end})` or
   *   `onOver({error})`; `credentials`; `connectTimeout`, milliseconds
   */
  constructor(url, options) {
    this.#url = url;
    this.#options = options;
    globalThis.addEventListener("online", this.#hurry);
    document.addEventListener("visibilitychange", this.#hurry);
    this.#follow();
  }

  get isUp() {
    return this.#up;
  }

  /** Whether it went out. What the user wants is kept until the line is up again. */
  send(message) {
    if (this.#up && this.#socket.send(message)) return true;
    if (KEPT.includes(message.type)) this.#unsent = [...this.#unsent, message].slice(-MOST_KEPT);
    return false;
  }

  /** What was said while the line was down goes out with the next, if that comes at once; nothing grows. */
  sendAudio(frame) {
    if (this.#up) {
      if (!this.#socket.sendAudio(frame)) this.dropped++;
    } else if (this.#ready) {
      this.#spoken.push(frame);
      if (this.#spoken.length > MOST_SPOKEN) this.dropped += this.#spoken.splice(0, 1).length;
    }
  }

  /** Say good-bye, and wait a moment for the answer. */
  async close() {
    if (this.#up && this.#socket.send({ type: "end" })) {
      await Promise.race([this.#socket.closed, pause(BYE_WITHIN)]);
    }
    this.#settle({ end: { code: 1000, reason: "The call has ended." } });
  }

  fail(error) {
    this.#settle({ error });
  }

  #settle(outcome) {
    if (this.#over) return;
    [this.#over, this.#up] = [true, false];
    globalThis.removeEventListener("online", this.#hurry);
    document.removeEventListener("visibilitychange", this.#hurry);
    this.#socket?.close();
    this.#endPause?.();
    this.#options.onOver(outcome);
  }

  async #follow() {
    await null; // the first callback comes when the caller has the session in hand
    while (!this.#over) {
      try {
        await this.#attempt();
      } catch (error) {
        if (this.#over) return;
        if (error instanceof Interruption) await this.#rest(error);
        else this.#settle({ error });
      }
    }
  }

  /** One socket, from its beginning to its end. */
  async #attempt() {
    const socket = (this.#socket = new VoiceSocket(this.#url, {
      within: this.#ready ? RESUME_WITHIN : this.#options.connectTimeout,
      onOpen: async () => socket.send(await this.#options.greeting(this.#ready?.token)),
      onMessage: (text) => this.#guard(() => this.#receive(parseEvent(text))),
      onAudio: (buffer) => this.#guard(() => this.#options.onAudio(buffer)),
    }));
    const closed = await socket.closed;
    if (this.#up) this.#sink();
    if (this.#over) return;
    if (!closed.opened) throw await this.#refusal();
    const { passing, ...outcome } = meaningOf(closed);
    if (passing && !(closed.code === BROKEN && this.#failures)) throw passing;
    if (passing || outcome.error) outcome.error = this.#refused ?? outcome.error ?? passing.verdict;
    this.#settle(outcome);
  }

  #guard(read) {
    if (this.#over) return;
    try {
      read();
    } catch (error) {
      this.#settle({ error });
    }
  }

  #receive(message) {
    if (message.type === "pong") return this.#pong(message);
    if (message.type === "ready") this.#begin(message);
    if (message.seq === 0) return this.#note(message);
    if (message.seq <= this.seq) return; // it came before the line broke
    if (message.seq > this.seq + 1) throw new ProtocolError(`The server left out its message ${this.seq + 1}.`);
    this.seq = message.seq ?? this.seq;
    if (message.type === "ready" || message.type === "resumed") this.#rise(message);
    else this.#options.onMessage(message);
  }

  /** A session counts anew, and knows nothing of what another was told. */
  #begin(message) {
    this.#ready = message;
    this.seq = 0;
    this.#spoken = [];
  }

  /** What is said before there is a session: why there will be none. */
  #note({ type, problem }) {
    if (type === "problem") this.#refused = new ProblemError(problem);
  }

  #pong(message) {
    this.#socket.ponged(message);
    this.rtt = this.#socket.rtt;
  }

  #rise(message) {
    [this.#up, this.#upAt] = [true, performance.now()];
    this.#socket.greeted();
    this.#options.onUp(message);
    for (const kept of this.#unsent.splice(0)) this.#socket.send(kept);
    for (const frame of this.#spoken.splice(0)) this.sendAudio(frame);
  }

  #sink() {
    this.#up = false;
    if (performance.now() - this.#upAt > STEADY) [this.#failures, this.#lostAt] = [0, null];
    if (!this.#over) this.#options.onDown();
  }

  /** A browser sees nothing of a handshake that was refused. The server tells it to who asks without one. */
  async #refusal() {
    const url = this.#url.replace(/^ws/, "http");
    let response;
    try {
      response = await fetch(url, {
        headers: { Accept: "application/problem+json" },
        credentials: this.#options.credentials,
        cache: "no-store",
        signal: AbortSignal.timeout(ASK_WITHIN),
      });
    } catch (cause) {
      return new Interruption("the server can't be reached", { cause });
    }
    if (response.status === 426) return new Interruption("no WebSocket gets through", { verdict: blocked() });
    if (response.ok) return new ProtocolError("There is no voice endpoint at this address.");
    if (this.#ready) return Interruption.orProblem(response, isPassing);
    return Interruption.orProblem(response, ({ status }) => status >= 500, PATIENCE);
  }

  /** Wait before the next attempt, or give up. */
  async #rest(passing) {
    const now = performance.now();
    this.#lostAt ??= now;
    const left = this.#ready ? this.#lostAt + this.#ready.resume_within * 1_000 - now : Infinity;
    if (left <= 0 || (!this.#ready && this.#failures + 1 >= STARTS)) return this.#settle({ error: passing.verdict });
    const wait = passing.wait(RETRY, Math.min(this.#failures++, DOUBLINGS));
    let timer;
    await new Promise((resolve) => {
      this.#endPause = resolve;
      timer = setTimeout(resolve, Math.min(wait, left));
    });
    clearTimeout(timer);
    this.#endPause = null;
  }

  #hurry = () => {
    if (document.visibilityState !== "hidden") this.#endPause?.();
  };
}

const blocked = () =>
  new ConnectionLostError(
    "The server would take the call, but no WebSocket gets through to it. A proxy or a firewall may be in the way.",
  );
