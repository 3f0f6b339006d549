/** How an answer ended, in words: one that was read to its end, and one that the server has kept. */

import { endInWords } from "./figures.js";

const CUT_SHORT = {
  length: "Cut off at the greatest length",
  content_filter: "Ended by the content filter",
  log_full: "Cut off: too long to be kept",
};

/** @returns {Promise<object>} what `AnswerView.end` takes, and the error that it failed with */
export async function outcomeOf(run, watch) {
  try {
    const done = await run.done;
    if (done.cancelled) return { state: "stopped", note: "Stopped", figures: watch.words };
    return { state: "done", note: CUT_SHORT[done.finishReason], figures: endInWords(done) };
  } catch (error) {
    return { state: "failed", note: sentenceFor(error), figures: watch.words, error };
  }
}

/** The same for a message of the server's. */
export function keptOutcome({ status, finish_reason, usage, content }) {
  const figures = endInWords({ tokens: usage?.completion_tokens });
  if (status === "cancelled") return { state: "stopped", note: "Stopped", figures };
  if (status !== "failed") return { state: "done", note: CUT_SHORT[finish_reason], figures };
  const note = content ? "This answer broke off before its end." : "There was no answer: something failed.";
  return { state: "failed", note, figures };
}

function sentenceFor(error) {
  const wait = error.retryAfter && !error.live?.length ? ` Try again in ${Math.ceil(error.retryAfter)} s.` : "";
  return `${error.message}${wait}`;
}
