/** What a run can end with besides its end, in one tree. */

export class LLMStreamError extends Error {
  get name() {
    return this.constructor.name;
  }
}

/**
 * The server refused the request, or the run failed: `problem` is what it said (RFC 9457). Where a limit is reached,
 * `limit` is which, and `live` has the runs that are in the way.
 */
export class ProblemError extends LLMStreamError {
  constructor(problem, retryAfter = null) {
    super(problem.detail ?? problem.title ?? "The server refused the request.");
    this.problem = problem;
    this.status = problem.status ?? null;
    this.type = problem.type ?? "about:blank";
    this.title = problem.title ?? null;
    this.detail = problem.detail ?? null;
    this.retryAfter = problem.retry_after ?? retryAfter;
    this.limit = problem.limit ?? null;
    this.live = problem.live ?? [];
  }
}

/** The server could not be reached any more. The run may still be going on: `resume` attaches to it again. */
export class ConnectionLostError extends LLMStreamError {}

/** The server sent something that is not this protocol. */
export class ProtocolError extends LLMStreamError {}

/** There is no microphone, or the browser lets nothing sound: `kind` says why, and the message what to do. */
export class DeviceError extends LLMStreamError {
  constructor(kind, message, options) {
    super(message, options);
    this.kind = kind;
  }
}

/** The server ended a call: `code` is that with which its WebSocket was closed. */
export class CallEndedError extends LLMStreamError {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Why one attempt broke off: the next may succeed. `verdict` is the error to end with when there is no next. */
export class Interruption extends Error {
  constructor(message, { cause, verdict, retryAfter = 0, atOnce = false } = {}) {
    super(message, { cause });
    this.verdict = verdict ?? new ConnectionLostError(`The line to the server was lost: ${message}.`, { cause });
    this.retryAfter = retryAfter;
    this.atOnce = atOnce;
  }

  /** Milliseconds before the next attempt; jittered, so that a fallen server's readers don't return as one. */
  wait(retry, failures) {
    if (this.atOnce) return 0;
    if (this.retryAfter > 0) return this.retryAfter * 1_000 * (1 + Math.random() / 4);
    const longest = Math.min(retry * 2 ** failures, Math.max(retry, Interruption.LONGEST_BACKOFF));
    return (longest * (1 + Math.random())) / 2;
  }

  static LONGEST_BACKOFF = 15_000;
  static LONGEST_RETRY_AFTER = 60;

  /**
   * What an error response comes to: an interruption if `mayPass(problemError, ours)`, else the problem error.
   *
   * @param longest seconds; who is asked to wait for longer does not
   */
  static async orProblem(response, mayPass, longest = Interruption.LONGEST_RETRY_AFTER) {
    const type = response.headers.get("Content-Type") ?? "";
    const found = /\bjson\b/.test(type) ? await response.json().catch(() => null) : null;
    const { status, statusText } = response;
    const problem = { type: "about:blank", title: statusText || `HTTP ${status}`, ...found, status };
    if (problem.live) problem.live = problem.live.map((run) => located(run, run.location, response));
    const error = new ProblemError(problem, seconds(response.headers.get("Retry-After")));
    const { retryAfter } = error;
    const passes = mayPass(error, type.startsWith("application/problem+json"));
    if (!passes || retryAfter > longest) return error;
    return new Interruption(error.message, { verdict: error, retryAfter: retryAfter ?? 0 });
  }
}

/** A run that an answer tells of, with its absolute URL: the page may be of another origin. */
export const located = (run, path, response) => ({ ...run, location: new URL(path, response.url).href });

/** Whether a problem is of one of these kinds of ours. */
export const isOneOf = ({ type }, kinds) => kinds.some((kind) => type === `urn:problem-type:flask-llmstream:${kind}`);

/** Whether the server may be well again after such an answer. */
export const isPassing = ({ status }) => status >= 500 || [408, 425, 429].includes(status);

/** What the header Retry-After says, in seconds; null where it says nothing. */
export function seconds(retryAfter) {
  if (retryAfter === null) return null;
  const seconds = /^\d+$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1_000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}
