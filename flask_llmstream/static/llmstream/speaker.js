import { Playhead } from "./playhead.js";

const ANSWER_WITHIN = 300; // milliseconds for the audio thread
const LONGEST_LATENCY = 0.5; // seconds; a wireless headset has 0.3, and what is beyond is a mistake
const SILENT = { generation: 0, samples: 0, finished: true, queued: 0, dry: true, underruns: 0, level: 0 };

/** The loudspeaker: a queue on the audio thread that can be emptied at once, and what of it has been heard. */
export class Speaker {
  dropped = 0; // packets that nobody heard: too late, or come twice
  report = { ...SILENT };
  #context;
  #worklet;
  #element = null;
  #rate = null;
  #sessions = 0;
  #playhead;
  #floor = 0; // generations below it are not to be heard
  #newest = 0;
  #end = null; // of what has been put into the queue: {generation, samples}
  #flushes = 0;
  #flushing = new Map(); // by the number of the flush: what waits for its answer

  /**
   * @param options `route`, "element" or "context"; `speakerId`; `onReport()`, called 40 times a second and at each
   *   end; `onSilenced()`, where the browser does not let it sound
   */
  constructor(context, options) {
    this.#context = context;
    this.#worklet = new AudioWorkletNode(context, "llmstream-playback", {
      numberOfInputs: 0,
      outputChannelCount: [1],
    });
    this.#worklet.port.onmessage = ({ data }) => this.#receive(data, options.onReport);
    this.#connect(options);
  }

  /**
   * An element's own buffer lies behind the context's, and is not part of `heard`. In return, browsers that cancel no
   * echo of a context may cancel that of an element.
   */
  #connect({ route, speakerId, onSilenced }) {
    if (route === "context") {
      this.#worklet.connect(this.#context.destination);
      if (speakerId) this.#context.setSinkId?.(speakerId).catch(() => {}); // then the usual one
      return;
    }
    const destination = new MediaStreamAudioDestinationNode(this.#context, { channelCount: 1 });
    this.#worklet.connect(destination);
    this.#element = new Audio();
    this.#element.srcObject = destination.stream;
    if (speakerId) this.#element.setSinkId?.(speakerId).catch(() => {});
    this.wake().catch(onSilenced);
  }

  /** Let it sound, where the browser held it back. */
  async wake() {
    await this.#element?.play();
  }

  /** Forget everything: a session begins whose audio has so many samples a second. */
  begin(rate) {
    this.#rate = rate;
    this.flush(Infinity);
    this.report = { ...SILENT };
    this.#playhead = new Playhead(rate);
    [this.#floor, this.#newest] = [0, 0];
    this.#worklet.port.postMessage({ rate, session: ++this.#sessions });
  }

  /** Put a packet into the queue. What was dropped before, or has come before, is left out. */
  play({ generation, offset, last, samples }) {
    const end = this.#end?.generation === generation ? this.#end.samples : 0;
    const known = Math.max(0, end - offset);
    if (generation < this.#floor || (known && known >= samples.length)) return void this.dropped++;
    this.#newest = Math.max(this.#newest, generation);
    this.#end = { generation, samples: offset + samples.length };
    const push = { generation, offset: offset + known, last, samples: samples.slice(known) };
    this.#worklet.port.postMessage({ push }, [push.samples.buffer]);
  }

  /**
   * Fall silent: drop what belongs to generations below this one.
   *
   * @returns what had been played by then: `{generation, samples}`
   */
  flush(below) {
    if (below < Infinity) this.#floor = Math.max(this.#floor, below);
    this.#end = null;
    const id = ++this.#flushes;
    this.#worklet.port.postMessage({ flush: below, id });
    return new Promise((resolve) => {
      this.#flushing.set(id, resolve);
      setTimeout(() => this.#answer(id, this.report), ANSWER_WITHIN);
    });
  }

  /** Fall silent, and let no more be heard of what is being said. */
  hush() {
    return this.flush(this.#newest + 1);
  }

  /** Whether there is a session whose answers it plays. */
  get isBegun() {
    return this.#rate !== null;
  }

  /** What has reached the ear by now: `{generation, samples, finished}`. */
  get heard() {
    const { currentTime, outputLatency, baseLatency } = this.#context;
    const latency = Math.min(outputLatency || baseLatency || 0, LONGEST_LATENCY);
    return this.#playhead.at(currentTime - latency);
  }

  close() {
    this.#worklet.port.postMessage({ close: true });
    this.#worklet.disconnect();
    if (this.#element) this.#element.srcObject = null;
  }

  #receive(report, onReport) {
    if (report.session !== this.#sessions || !this.isBegun) return; // of a session that is over
    this.report = report;
    this.#playhead.add(report);
    this.#answer(report.id, report);
    onReport();
  }

  #answer(id, { generation, samples }) {
    this.#flushing.get(id)?.({ generation, samples });
    this.#flushing.delete(id);
  }
}
