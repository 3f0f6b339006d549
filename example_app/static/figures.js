/** How fast an answer came, in words. */

export class Stopwatch {
  #began = performance.now();
  #first;
  #last;
  tokens = 0;

  /** Something of the answer has arrived; `counts` is false for what is no text. */
  arrived(counts = true) {
    this.#last = performance.now();
    this.#first ??= this.#last;
    if (counts) this.tokens += 1;
  }

  /** Milliseconds since something arrived; 0 before the first time. */
  get silence() {
    return this.#last === undefined ? 0 : performance.now() - this.#last;
  }

  /** As measured on this page, so with the network in it. */
  get words() {
    if (this.#first === undefined) return "";
    const seconds = (this.#last - this.#first) / 1000;
    return inWords(this.#first - this.#began, seconds > 0.2 ? this.tokens / seconds : undefined, this.tokens);
  }
}

/** The figures of a run's end, as the server has measured them. */
export function endInWords({ ttft_ms, tokens_per_second, tokens }) {
  return inWords(ttft_ms, tokens_per_second, tokens);
}

function inWords(firstToken, rate, tokens) {
  const parts = [];
  if (firstToken != null) parts.push(`first token ${(firstToken / 1000).toFixed(2)} s`);
  if (rate != null) parts.push(`${Math.round(rate)} tokens/s`);
  if (tokens) parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  return parts.join(" · ");
}
