const CROSSINGS = 8; // of the sinc, on each side: aliases lie 50 dB and more below the speech

/**
 * Changes the rate of a stream of samples: a windowed sinc, kept as one short filter for each phase that an output
 * sample can have between two input samples. It does no I/O, and runs on the audio thread.
 */
export class Resampler {
  #up;
  #down;
  #half;
  #taps;
  #filters;
  #held; // input that later outputs still need
  #count = 0;
  #place = 0; // of the next output sample, in input samples times `#up`

  /** @param from samples a second, whole; `to` likewise */
  constructor(from, to) {
    const common = divisor(from, to);
    [this.#up, this.#down] = [to / common, from / common];
    const pass = Math.min(1, to / from); // below half of the lower rate
    this.#half = Math.ceil(CROSSINGS / pass);
    this.#taps = 2 * this.#half;
    this.#filters = new Float32Array(this.#up * this.#taps);
    for (let phase = 0; phase < this.#up; phase++) this.#filters.set(this.#filter(phase, pass), phase * this.#taps);
    this.#held = new Float32Array(this.#taps + 8_192);
    this.#count = this.#half - 1; // silence before the first
  }

  #filter(phase, pass) {
    const taps = Float32Array.from({ length: this.#taps }, (_, tap) => {
      const x = tap - this.#half + 1 - phase / this.#up;
      return sinc(pass * x) * Math.cos((Math.PI * x) / (2 * (this.#half + 1))) ** 2;
    });
    const sum = taps.reduce((total, tap) => total + tap, 0);
    return taps.map((tap) => tap / sum);
  }

  /** The output that the input so far suffices for. */
  resample(input) {
    if (this.#up === this.#down) return input;
    const output = new Float32Array(Math.ceil(((input.length + 1) * this.#up) / this.#down) + 1);
    let written = 0;
    for (let start = 0; start < input.length; start += 8_192) {
      written = this.#push(input.subarray(start, start + 8_192), output, written);
    }
    return output.subarray(0, written);
  }

  #push(input, output, written) {
    this.#held.set(input, this.#count);
    this.#count += input.length;
    for (let first; (first = Math.floor(this.#place / this.#up)) + this.#taps <= this.#count; ) {
      output[written++] = this.#sample(first, this.#place % this.#up);
      this.#place += this.#down;
    }
    const done = Math.min(Math.floor(this.#place / this.#up), this.#count);
    this.#held.copyWithin(0, done, this.#count);
    this.#count -= done;
    this.#place -= done * this.#up;
    return written;
  }

  #sample(first, phase) {
    const offset = phase * this.#taps;
    let sum = 0;
    for (let tap = 0; tap < this.#taps; tap++) sum += this.#held[first + tap] * this.#filters[offset + tap];
    return sum;
  }
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

const divisor = (a, b) => (b === 0 ? a : divisor(b, a % b));
