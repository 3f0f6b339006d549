import { Interruption, ProtocolError, isOneOf } from "./errors.js";
import { requireReadable } from "./input.js";
import { Line } from "./line.js";

const FROM_PROXIES = [429, 502, 503, 504]; // perhaps the start got through
const PASSING = ["overloaded", "shutting-down", "store-unavailable"];
const LASTING = ["model-not-configured", "secret-key-missing"];

/** A POST under one idempotency key, made again until it has an answer that will not change. */
export class Start {
  #question;
  #attempts;
  #options;
  #line;
  #sending = false;
  #reached = false; // whether an attempt may have been carried out, though its answer was lost
  #refused; // whether the application itself did not carry the last one out
  #failed = null; // the run whose failure the last answer told
  #reason = null; // why it is taken back: {error, unlessOut}

  /**
   * @param question `url`, `key`, `body`, and the `headers` that belong to the body
   * @param options `credentials`; `within`, the milliseconds that an answer may take once the body is out; `onUpload`
   */
  constructor(question, attempts, options) {
    this.#question = question;
    this.#attempts = attempts;
    this.#options = options;
  }

  /** The response that says yes, and its JSON. */
  answer() {
    return this.#attempts.persist(() => this.#attempt());
  }

  /** Whether the server may know of it, as far as this page can tell. */
  get isOut() {
    return this.#sending || this.#reached;
  }

  /** Take it back, whatever became of it. */
  giveUp(error) {
    this.#reason = { error };
    this.#line?.drop();
    this.#attempts.hurry();
  }

  /** Take it back, unless it may have been carried out: then the answer is worth waiting for. */
  withdraw(error) {
    this.#reason = { error, unlessOut: true };
    this.#attempts.hurry();
  }

  async #attempt() {
    const { url, key, body, headers: type } = this.#question;
    const { credentials, within, onUpload } = this.#options;
    const headers = await this.#attempts.headers({ Accept: "application/json", "Idempotency-Key": key, ...type });
    this.#goOn();
    const line = (this.#line = new Line(within));
    let whole = true; // small bodies are out before anything is told of them
    const told = (loaded, total) => {
      whole = loaded === total;
      onUpload?.(loaded, total);
      if (this.#reason && !whole && !this.#reached) this.giveUp(this.#reason.error);
    };
    this.#sending = true;
    this.#refused = false;
    try {
      const response = await line.post(url, { headers, body, credentials, onUpload: told });
      if (!response.ok) throw await Interruption.orProblem(response, this.#mayPass(response));
      return { response, json: await jsonOf(response) };
    } catch (error) {
      if (error instanceof Interruption && !this.#refused) {
        await requireReadable(body);
        this.#reached ||= whole;
      }
      this.#goOn();
      throw error;
    } finally {
      this.#sending = false;
      line.drop();
    }
  }

  #goOn() {
    if (this.#reason && !(this.#reason.unlessOut && this.#reached)) throw this.#reason.error;
  }

  #mayPass = (response) => (error, ours) => {
    this.#refused = ours;
    if (!ours) return FROM_PROXIES.includes(error.status);
    if (isOneOf(error, PASSING)) return true;
    const run = response.headers.get("Location"); // which has failed; the key may have kept that failure
    const again = run !== null && run === this.#failed;
    this.#failed = run;
    if (error.status === 429) return !again && error.retryAfter !== null; // else the limit does not pass
    return !again && error.status === 503 && !isOneOf(error, LASTING);
  };
}

/** The JSON that an answer is. */
export async function jsonOf(response) {
  const type = response.headers.get("Content-Type") ?? "nothing";
  if (!/\bjson\b/i.test(type)) throw new ProtocolError(`The server sent ${type}, no JSON.`);
  return response.json().catch((cause) => {
    throw new ProtocolError("The server sent an answer that is not JSON.", { cause });
  });
}
