/** From bytes to events: server-sent events as the WHATWG specification has them, and what they say of a run. */

import { ProblemError, ProtocolError } from "./errors.js";

const LARGEST_EVENT = 8 * 2 ** 20;

/**
 * Takes bytes, and reports blocks: `onBlock({id, data, event})` for each that has an id or data; what a block does
 * not have is undefined. What the end of the stream cut short is never reported. It does no I/O.
 */
export class EventStreamParser {
  #decoder = new TextDecoder();
  #pieces = []; // of the line that has not ended yet: joined once, so that long lines take linear time
  #piecesSize = 0;
  #lines = [];
  #linesSize = 0;
  #id;
  #event = "";
  #afterCR = false;
  #told;

  constructor({ onBlock, onComment = () => {}, onRetry = () => {}, maxEventSize = LARGEST_EVENT }) {
    this.#told = { onBlock, onComment, onRetry, maxEventSize };
  }

  feed(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return;
    let start = this.#afterCR && text[0] === "\n" ? 1 : 0; // the second half of a CRLF
    this.#afterCR = text.endsWith("\r");
    const ends = /\r\n|\r|\n/g;
    ends.lastIndex = start;
    for (let end; (end = ends.exec(text)); start = ends.lastIndex) {
      this.#hold(text.slice(start, end.index));
      const line = this.#pieces.length === 1 ? this.#pieces[0] : this.#pieces.join("");
      this.#pieces = [];
      this.#piecesSize = 0;
      if (line === "") this.#dispatch();
      else this.#read(line);
    }
    if (start < text.length) this.#hold(text.slice(start));
  }

  #hold(piece) {
    this.#pieces.push(piece);
    this.#piecesSize += piece.length;
    if (this.#piecesSize + this.#linesSize > this.#told.maxEventSize) {
      throw new ProtocolError(`The server sent an event of more than ${this.#told.maxEventSize} characters.`);
    }
  }

  #read(line) {
    const colon = line.indexOf(":");
    if (colon === 0) return this.#told.onComment(line.slice(1));
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      this.#lines.push(value);
      this.#linesSize += value.length + 1;
    } else if (name === "id") {
      if (!value.includes("\0")) this.#id = value;
    } else if (name === "event") {
      this.#event = value;
    } else if (name === "retry" && /^[0-9]+$/.test(value)) {
      this.#told.onRetry(Number(value));
    }
  }

  #dispatch() {
    const data = this.#lines.length ? this.#lines.join("\n") : undefined;
    const block = { id: this.#id, data, event: this.#event || "message" };
    this.#lines = [];
    this.#linesSize = 0;
    this.#id = undefined;
    this.#event = "";
    if (block.data !== undefined || block.id !== undefined) this.#told.onBlock(block);
  }
}

/** A place in a run's log, `<run id>:<epoch>-<n>`; undefined for any other text. */
export function parseCursor(text) {
  const match = /^(.+):(\d+)-(\d+)$/.exec(text);
  return match ? { run: match[1], epoch: Number(match[2]), n: Number(match[3]), text } : undefined;
}

export function parseEvent(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch (cause) {
    throw new ProtocolError("The server sent an event that is not JSON.", { cause });
  }
  if (!(event instanceof Object)) throw new ProtocolError("The server sent an event that is not a JSON object.");
  return event;
}

/** Whether a run ends with this event. */
export const isTerminal = (event) => event.done === true || "error" in event;

const ENDED = ["completed", "incomplete", "failed", "cancelled"];

/** The terminal event that a run's JSON amounts to; undefined while the run goes on. */
export function terminalOf({ status, error: problem, ...more }) {
  if (!ENDED.includes(status)) return undefined;
  if (status === "failed") return { ...more, error: problem?.detail ?? "The run failed.", problem };
  return { ...more, done: true, cancelled: status === "cancelled" };
}

/** The error that a run has failed with, as its terminal event tells it. */
export function failureOf({ error, problem }) {
  const plain = { type: "about:blank", title: "The run failed", detail: String(error) };
  return new ProblemError(problem instanceof Object ? problem : plain);
}

/** What `done` resolves with. */
export function endOf(event, text) {
  const { tokens = null, usage = null, ttft_ms = null, total_ms = null, tokens_per_second = null } = event;
  const [cancelled, finishReason] = [event.cancelled === true, event.finish_reason ?? null];
  return { ...event, text, cancelled, finishReason, tokens, usage, ttft_ms, total_ms, tokens_per_second };
}
