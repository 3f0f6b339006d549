import { deviceError, requireSupport } from "./devices.js";
import { ConnectionLostError } from "./errors.js";
import { Microphone } from "./microphone.js";
import { Speaker } from "./speaker.js";

const RATE = 24_000; // what answers have by default: then nothing needs to be resampled on its way out
const MODULES = ["capture-worklet.js", "playback-worklet.js"];
const HELD_BACK = 500; // milliseconds after which a context that does not run is one that the browser holds back
const GESTURES = ["pointerdown", "keydown", "visibilitychange"];

/** The two ends of a call on this machine: a microphone and a loudspeaker on one audio clock. */
export class Sound {
  speaker = null;
  #options;
  #context;
  #microphone;
  #closed = false;
  #held = false; // whether the browser wants a gesture
  #running = null; // what waits until the browser lets it sound

  /** @param options those of `Microphone` and of `Speaker` */
  constructor(options) {
    requireSupport();
    this.#options = options;
    this.#begin(contextOf(RATE)); // at once: a gesture of the user's counts for a moment only
    this.#microphone = new Microphone(options);
  }

  /** Resolves when it hears, and can be heard. */
  async open() {
    await Promise.all([this.#microphone.open(), this.#load()]);
    if (this.#closed) return;
    try {
      this.#microphone.connect(this.#context);
    } catch {
      await this.#change(); // Firefox connects no microphone to a context of another rate
    }
    if (this.#closed) return;
    const onSilenced = () => this.#hold();
    this.speaker = new Speaker(this.#context, { ...this.#options, onSilenced });
    await this.#awake();
  }

  /** Milliseconds since a time of the context's clock. */
  age(time) {
    return (this.#context.currentTime - time) * 1_000;
  }

  get microphone() {
    return this.#microphone;
  }

  close() {
    this.#closed = true;
    this.#microphone.close();
    this.speaker?.close();
    this.#context.removeEventListener("statechange", this.#look);
    this.#context.close().catch(() => {});
    this.#letGo();
    this.#running?.();
  }

  #begin(context) {
    this.#context = context;
    context.addEventListener("statechange", this.#look);
    context.resume().catch(() => {});
  }

  async #load() {
    const { audioWorklet } = this.#context;
    try {
      await Promise.all(MODULES.map((name) => audioWorklet.addModule(new URL(name, import.meta.url))));
    } catch (cause) {
      throw new ConnectionLostError("A part of the page could not be loaded. Try again.", { cause });
    }
  }

  async #change() {
    this.#context.removeEventListener("statechange", this.#look);
    await this.#context.close();
    this.#begin(contextOf());
    await this.#load();
    if (!this.#closed) this.#microphone.connect(this.#context);
  }

  /** Until the context runs; told as a problem where that needs a gesture. */
  async #awake() {
    if (this.#context.state === "running") return;
    const late = setTimeout(() => this.#hold(), HELD_BACK);
    await new Promise((resolve) => (this.#running = resolve));
    clearTimeout(late);
  }

  #look = () => {
    if (this.#context.state === "running") return this.#running?.();
    this.#context.resume().catch(() => {}); // such as after a telephone call
    setTimeout(() => !this.#closed && this.#context.state !== "running" && this.#hold(), HELD_BACK);
  };

  #hold() {
    if (this.#closed || this.#held) return;
    this.#held = true;
    this.#options.onProblem(deviceError("suspended"));
    for (const gesture of GESTURES) document.addEventListener(gesture, this.#wake);
  }

  #wake = () => {
    this.#context.resume().catch(() => {});
    this.speaker?.wake().catch(() => {});
    if (this.#context.state === "running") this.#letGo();
  };

  #letGo() {
    this.#held = false;
    for (const gesture of GESTURES) document.removeEventListener(gesture, this.#wake);
  }
}

function contextOf(sampleRate) {
  const options = { latencyHint: "interactive" };
  try {
    return new AudioContext(sampleRate ? { ...options, sampleRate } : options);
  } catch {
    return new AudioContext(options); // it does not know the rate
  }
}
