/** On the audio thread: what the microphone hears, as frames that are fit to be sent. */

import { Resampler } from "./resampler.js";

const FRAME = 0.02; // seconds

/**
 * Posts one frame after another: `{frame, level, at}` with `frame` an ArrayBuffer of PCM16 behind room for a header,
 * `level` its root mean square from 0 to 1, and `at` the context's time of its first sample, in seconds. Takes
 * `{rate}`, samples a second from then on, and `{close: true}`.
 */
class Capture extends AudioWorkletProcessor {
  #resampler;
  #rate;
  #header;
  #samples; // of the frame that is being filled
  #filled = 0;
  #power = 0;
  #over = false;

  constructor({ processorOptions: { rate, header } }) {
    super();
    this.#header = header;
    this.#tune(rate);
    this.port.onmessage = ({ data: { rate: another, close } }) => {
      if (another) this.#tune(another);
      if (close) this.#over = true;
    };
  }

  #tune(rate) {
    this.#rate = rate;
    this.#resampler = new Resampler(sampleRate, rate);
    this.#begin();
  }

  process([channels]) {
    if (channels.length) {
      const samples = this.#resampler.resample(mono(channels));
      for (let n = 0; n < samples.length; n++) this.#write(samples[n], samples.length - n);
    }
    return !this.#over;
  }

  /** @param left how many samples are still to come of what was heard up to now */
  #write(sample, left) {
    const clipped = Math.max(-1, Math.min(1, sample));
    this.#power += clipped * clipped;
    this.#samples[this.#filled++] = Math.round(clipped * 32_767);
    if (this.#filled < this.#samples.length) return;
    const at = currentTime + 128 / sampleRate - (this.#filled + left) / this.#rate;
    const level = Math.sqrt(this.#power / this.#filled);
    const frame = this.#samples.buffer;
    this.port.postMessage({ frame, level, at }, [frame]);
    this.#begin();
  }

  #begin() {
    const length = Math.round(this.#rate * FRAME);
    this.#samples = new Int16Array(new ArrayBuffer(this.#header + 2 * length), this.#header, length);
    this.#filled = this.#power = 0;
  }
}

function mono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, n) => channels.reduce((sum, channel) => sum + channel[n], 0) / channels.length);
}

registerProcessor("llmstream-capture", Capture);
