/** On the audio thread: the queue of what is to be heard, and the count of what was. */

import { Resampler } from "./resampler.js";

const REPORT = 0.025; // seconds between two reports
const REFILL = 0.08; // seconds of audio that are awaited after the queue ran dry in the midst of an answer
const PATIENCE = 0.12; // seconds that are waited for them: perhaps that is all there is for now
const LONGEST = 30; // seconds of audio in the queue: a server that keeps to the protocol sends 0.4 ahead
const RAMP = 0.003; // seconds in which a sound that is cut, or begins in its midst, fades: it would click

/**
 * Plays chunks in the order in which they are posted. Messages in:
 *
 *     {push: {generation, offset, last, samples}}   `samples` PCM16, `offset` where they are in their generation
 *     {flush: generation, id}                       drop all below it, at once
 *     {rate, session}                               a session begins; samples a second
 *     {close: true}
 *
 * Messages out, several times in each tenth of a second: `{time, generation, samples, queued, dry, finished,
 * underruns, level}`: at the context's `time` so many `samples` of `generation` had been given to the loudspeaker, and
 * `queued` seconds were left; `finished`: it was the last of its answer. A flush is answered by such a report with its
 * `id`; each has the number of its `session`.
 */
class Playback extends AudioWorkletProcessor {
  #rate = sampleRate;
  #session = 0;
  #resampler = null;
  #queue = []; // {generation, offset, length, last, samples, at}: `at` is the next of `samples`, at the context's rate
  #queued = 0; // samples
  #fading = new Float32Array(0); // what is left of a sound that was cut
  #since = null; // when the wait began that the next chunk starts with; null while it plays
  #need = 0; // seconds
  #place = { generation: 0, samples: 0, finished: true };
  #underruns = 0;
  #power = 0;
  #measured = 0;
  #reported = 0;
  #over = false;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => this.#receive(data);
  }

  #receive({ push, flush, id, rate, session, close }) {
    if (push) this.#push(push);
    if (flush !== undefined) this.#flush(flush, id);
    if (rate) this.#begin(rate, session);
    if (close) this.#over = true;
  }

  #begin(rate, session) {
    [this.#rate, this.#session, this.#resampler] = [rate, session, null];
    this.#place = { generation: 0, samples: 0, finished: true };
  }

  #push({ generation, offset, last, samples: pcm }) {
    if (this.#queued > LONGEST * sampleRate) return;
    const input = Float32Array.from(pcm, (sample) => sample / 32_768);
    if (generation !== this.#newest) this.#resampler = null;
    this.#resampler ??= new Resampler(this.#rate, sampleRate);
    const samples = this.#resampler.resample(input);
    if (!this.#queue.length) this.#wait(generation === this.#place.generation ? this.#need : 0);
    this.#queue.push({ generation, offset, last, samples, length: input.length, at: 0 });
    this.#queued += samples.length;
  }

  get #newest() {
    return this.#queue.at(-1)?.generation ?? this.#place.generation;
  }

  /** Hold the next chunk back until so many seconds are there. */
  #wait(seconds) {
    this.#since = currentTime;
    this.#need = seconds;
  }

  #flush(generation, id) {
    const [head] = this.#queue;
    if (head?.generation < generation) {
      this.#place = this.#placeIn(head, head.at);
      if (this.#since === null) this.#fade(head);
      this.#queue = this.#queue.filter((chunk) => chunk.generation >= generation);
      this.#queued = this.#queue.reduce((total, { samples, at }) => total + samples.length - at, 0);
      this.#resampler = null;
      this.#wait(0);
    }
    this.#report(id);
  }

  #fade({ samples, at }) {
    const rest = samples.slice(at, at + Math.round(RAMP * sampleRate));
    this.#fading = rest.map((sample, n) => sample * (1 - (n + 1) / rest.length));
    this.#place.samples += Math.round((rest.length * this.#rate) / sampleRate);
  }

  process(_, [[output]]) {
    const faded = this.#fading.subarray(0, output.length);
    output.set(faded);
    this.#fading = this.#fading.subarray(faded.length);
    const ran = this.#isHeld() ? false : this.#play(output, faded.length);
    for (const sample of output) this.#power += sample * sample;
    this.#measured += output.length;
    if (ran || currentTime - this.#reported >= REPORT) this.#report();
    return !this.#over;
  }

  #isHeld() {
    if (!this.#queue.length) return true;
    if (this.#since === null) return false;
    const enough = this.#queued >= this.#need * sampleRate || this.#queue.some(({ last }) => last);
    return !enough && currentTime - this.#since < PATIENCE;
  }

  /** Whether there is something to tell: a generation has ended, or the queue has run dry. */
  #play(output, from) {
    const begins = this.#since !== null;
    this.#since = null;
    let tell = begins;
    let n = from;
    while (n < output.length && this.#queue.length) {
      const [head] = this.#queue;
      if (head.generation !== this.#place.generation) {
        if (this.#place.samples) this.#report(); // how much there was of the one before
        tell = true;
      }
      const count = Math.min(output.length - n, head.samples.length - head.at);
      output.set(head.samples.subarray(head.at, head.at + count), n);
      head.at += count;
      n += count;
      this.#queued -= count;
      this.#place = this.#placeIn(head, head.at);
      if (head.at < head.samples.length) break;
      this.#place.finished = head.last;
      this.#queue.shift();
    }
    if (begins) rise(output, from);
    if (this.#queue.length) return tell;
    if (!this.#place.finished) this.#underruns++;
    this.#wait(this.#place.finished ? 0 : REFILL);
    return true;
  }

  #placeIn({ generation, offset, length, samples }, at) {
    const played = samples.length ? Math.round((length * at) / samples.length) : length;
    return { generation, samples: offset + played, finished: false };
  }

  #report(id) {
    this.#reported = currentTime;
    this.port.postMessage({
      ...this.#place,
      id,
      session: this.#session,
      time: currentTime + 128 / sampleRate,
      queued: this.#queued / sampleRate,
      dry: !this.#queue.length,
      underruns: this.#underruns,
      level: this.#measured ? Math.sqrt(this.#power / this.#measured) : 0,
    });
    this.#power = this.#measured = 0;
  }
}

function rise(output, from) {
  const length = Math.min(output.length - from, Math.round(RAMP * sampleRate));
  for (let n = 0; n < length; n++) output[from + n] *= (n + 1) / length;
}

registerProcessor("llmstream-playback", Playback);
