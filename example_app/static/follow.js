/** Keeps the end of a growing page in sight, until the reader scrolls away from it. */

const NEAR = 64; // pixels from the end that still count as being there

export class Follow {
  #button;
  #following = true;
  #lastTop = 0;

  /** @param {HTMLElement} button shown while the reader is elsewhere; brings them back */
  constructor(button) {
    this.#button = button;
    button.addEventListener("click", () => this.toEnd());
    window.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    window.addEventListener("resize", () => this.grown(), { passive: true });
  }

  /** The page has grown: go along, if the reader was at its end. */
  grown() {
    if (this.#following) window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    else this.#button.hidden = this.#atEnd();
  }

  /** Go to the end, and stay with it. */
  toEnd() {
    this.#following = true;
    this.#button.hidden = true;
    this.grown();
  }

  #scrolled() {
    const up = window.scrollY < this.#lastTop;
    this.#lastTop = window.scrollY;
    if (this.#atEnd()) this.#following = true;
    else if (up) this.#following = false; // only a person scrolls up; a page that grows does not
    this.#button.hidden = this.#following;
  }

  #atEnd() {
    const root = document.documentElement;
    return root.scrollHeight - root.clientHeight - window.scrollY < NEAR;
  }
}
