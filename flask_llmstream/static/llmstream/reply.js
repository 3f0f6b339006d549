import { Attempts } from "./attempts.js";
import { ConnectionLostError } from "./errors.js";
import { Start } from "./start.js";

const ANSWER_WITHIN = 40_000; // then it is asked for again, which joins the run if it is still there
const DEFAULT_TIMEOUT = 120_000;

/** The answer to a question that is asked under one key, until there is one. */
export async function replyTo(question, { signal, timeout = DEFAULT_TIMEOUT, onUpload, ...options }) {
  signal?.throwIfAborted();
  const attempts = new Attempts(options);
  const start = new Start(question, attempts, { credentials: options.credentials, within: ANSWER_WITHIN, onUpload });
  const abort = () => start.giveUp(signal.reason);
  const late = () => start.giveUp(new ConnectionLostError(`There was no answer within ${timeout} ms.`));
  const timer = timeout < Infinity ? setTimeout(late, timeout) : null;
  signal?.addEventListener("abort", abort);
  try {
    return (await start.answer()).json;
  } finally {
    signal?.removeEventListener("abort", abort);
    clearTimeout(timer);
    attempts.close();
  }
}
