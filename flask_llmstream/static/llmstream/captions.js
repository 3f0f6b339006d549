/** Sentences that wait until they are heard. */
export class Captions {
  #waiting = [];

  /** @param sentence `{generation, offset, text}`: it begins at that sample of the generation */
  add(sentence) {
    this.#waiting.push(sentence);
  }

  /** Those that have begun by now, in their order. */
  heard({ generation, samples, finished }) {
    const isHeard = (sentence) =>
      sentence.generation < generation ||
      (sentence.generation === generation && (finished || sentence.offset < samples));
    const heard = this.#waiting.filter(isHeard);
    if (heard.length) this.#waiting = this.#waiting.filter((sentence) => !isHeard(sentence));
    return heard;
  }

  /** Forget those that nobody will hear. */
  drop(below) {
    this.#waiting = this.#waiting.filter(({ generation }) => generation >= below);
  }
}
