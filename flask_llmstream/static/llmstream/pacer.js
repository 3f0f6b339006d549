/**
 * Hands things out in order. What comes alone goes at once; a burst is spread over the frames of the next `WINDOW`
 * milliseconds, while the page is visible.
 */
export class Pacer {
  static WINDOW = 300;
  static LATE = 90; // no frame for so long: they have stopped, as off screen; in all never more than 400 ms behind
  static FRAME = 16;
  #queue = [];
  #frame;
  #timer;
  #last = -Infinity; // when something was last handed out
  #due = 0; // how many things may go, fractions kept

  constructor(smooth) {
    this.smooth = smooth && "document" in globalThis; // a worker may have frames, but nobody sees them
  }

  push(give) {
    const now = performance.now();
    if (!this.smooth || document.visibilityState === "hidden") this.flush();
    else if (this.#queue.length || now - this.#last < Pacer.FRAME) {
      if (this.#queue.push({ give, at: now }) === 1) this.#await();
      return;
    }
    this.#last = now;
    give();
  }

  flush() {
    this.#rest();
    while (this.#queue.length) this.#queue.shift().give();
  }

  #await() {
    this.#frame = requestAnimationFrame(() => this.#step(performance.now()));
    this.#timer = setTimeout(() => this.flush(), Pacer.LATE);
  }

  #rest() {
    if (this.#frame) cancelAnimationFrame(this.#frame);
    clearTimeout(this.#timer);
    this.#due = 0;
  }

  #step(now) {
    clearTimeout(this.#timer);
    const left = Math.max(1, this.#queue[0].at + Pacer.WINDOW - now);
    this.#due += (this.#queue.length * (now - this.#last)) / left;
    this.#last = now;
    for (; this.#due >= 1 && this.#queue.length; this.#due -= 1) this.#queue.shift().give();
    if (this.#queue.length) this.#await();
    else this.#rest();
  }
}
