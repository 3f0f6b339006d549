/**
 * What of the queue can be heard at a moment. The audio thread reports what it has given away; the device has some of
 * that before it still. It does no I/O; times are seconds on the context's clock.
 */
export class Playhead {
  #rate;
  #reports = [{ time: -Infinity, generation: 0, samples: 0, finished: true }];
  #furthest = this.#reports[0];

  /** @param rate samples a second */
  constructor(rate) {
    this.#rate = rate;
  }

  /** @param report `{time, generation, samples, finished}`: what had been given away by then */
  add({ time, generation, samples, finished }) {
    this.#reports.push({ time, generation, samples, finished });
    if (this.#reports.length > 1_000) this.#reports.splice(1, 500); // nobody asks
  }

  /**
   * What was being heard: `{generation, samples, finished}`. No generation's end is left out: it is told before what
   * follows it. Reports from before are forgotten.
   */
  at(time) {
    const there = this.#find(time);
    const back = there.generation === this.#furthest.generation && there.samples < this.#furthest.samples;
    return (this.#furthest = back ? this.#furthest : there); // the device's latency changes in between
  }

  #find(time) {
    const later = this.#reports.findIndex((report) => report.time > time);
    const index = (later < 0 ? this.#reports.length : later) - 1;
    const end = this.#reports.findLastIndex((report) => report.generation === this.#furthest.generation);
    if (end >= 0 && end < index && !this.#furthest.finished) {
      this.#reports.splice(0, end);
      return { ...this.#reports[0], finished: true };
    }
    this.#reports.splice(0, index);
    const [{ time: since, generation, samples, finished }, next] = this.#reports;
    if (next?.generation !== generation || later < 0) return { generation, samples, finished };
    const reached = samples + Math.floor((time - since) * this.#rate);
    return { generation, samples: Math.max(samples, Math.min(next.samples, reached)), finished };
  }
}
