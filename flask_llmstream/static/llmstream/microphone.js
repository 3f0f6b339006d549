import { deviceError, explained } from "./devices.js";
import { HEADER } from "./packets.js";

// What is said by the loudspeaker should not come back as the user's words.
const WANTED = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };

/** A microphone, or the one that takes its place when it is unplugged: frames of what it hears. */
export class Microphone {
  #options;
  #context = null;
  #worklet = null;
  #stream = null;
  #source = null;
  #closed = false;

  /**
   * @param options `rate`, samples a second; `deviceId` and `constraints`, those of the page;
   *   `onFrame({frame, level, at})`, `onProblem(error)`, and `onChange()` when devices come or go
   */
  constructor(options) {
    this.#options = { ...options };
  }

  /** Ask for it. */
  async open() {
    const { constraints, deviceId } = this.#options;
    const preferred = deviceId ? { deviceId: { ideal: deviceId } } : {};
    const audio = { ...WANTED, ...preferred, ...constraints };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (cause) {
      throw explained(cause);
    }
    this.#drop();
    this.#stream = stream;
    if (this.#closed) return this.#drop();
    const [track] = stream.getAudioTracks();
    track.addEventListener("ended", this.#replace);
    navigator.mediaDevices.addEventListener("devicechange", this.#changed);
  }

  /** Hear it on the audio thread of a context, whose modules are there. It throws where the rates don't fit. */
  connect(context) {
    const source = context.createMediaStreamSource(this.#stream);
    if (context !== this.#context) {
      this.#worklet?.port.postMessage({ close: true });
      this.#worklet = new AudioWorkletNode(context, "llmstream-capture", {
        numberOfOutputs: 0,
        processorOptions: { rate: this.#options.rate, header: HEADER },
      });
      this.#worklet.port.onmessage = ({ data }) => this.#options.onFrame(data);
      this.#context = context;
    }
    source.connect(this.#worklet);
    this.#source = source;
  }

  /** Send so many samples a second from now on. */
  tune(rate) {
    if (rate === this.#options.rate) return;
    this.#options.rate = rate;
    this.#worklet.port.postMessage({ rate });
  }

  /** Change to another. */
  async use(deviceId) {
    this.#options.deviceId = deviceId;
    await this.open();
    if (!this.#closed && this.#context) this.connect(this.#context);
  }

  /** What the browser calls it. */
  get label() {
    return this.#stream?.getAudioTracks()[0]?.label ?? "";
  }

  close() {
    this.#closed = true;
    this.#drop();
    this.#worklet?.port.postMessage({ close: true });
    navigator.mediaDevices?.removeEventListener("devicechange", this.#changed);
  }

  #drop() {
    this.#source?.disconnect();
    for (const track of this.#stream?.getTracks() ?? []) {
      track.removeEventListener("ended", this.#replace);
      track.stop();
    }
    this.#source = null;
  }

  #replace = async () => {
    try {
      await this.use(null);
    } catch (error) {
      if (!this.#closed) this.#options.onProblem(deviceError("unplugged", error));
    }
  };

  #changed = () => {
    this.#options.onChange();
    const [track] = this.#stream.getAudioTracks();
    if (track.readyState === "ended" && !this.#closed) this.#replace();
  };
}
