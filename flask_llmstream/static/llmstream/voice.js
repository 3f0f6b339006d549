/**
 * A call: the user speaks, and is spoken to. This is the page's end of it; the turns are taken on the server.
 *
 *     idle ──> connecting ──> listening, hearing, thinking, speaking <──> reconnecting
 *     and from each of them but the first, once, to: ended | failed
 *
 * What the server says is numbered, and so is what it lets be heard: an answer is a generation, and a place in it is
 * counted in samples. The server is told ten times a second how far that has got, because it is to remember of an
 * answer what was heard, and no more.
 */

import { Captions } from "./captions.js";
import { LLMStreamError, ProblemError, ProtocolError } from "./errors.js";
import { endOf, failureOf, isTerminal } from "./events.js";
import { Floor } from "./floor.js";
import { parsePacket, stamped } from "./packets.js";
import { Session } from "./session.js";
import { Sound } from "./sound.js";
import { callsFor, report, tell } from "./told.js";
import { deferred } from "./waiting.js";

const DEFAULTS = { mode: "auto", inputRate: 16_000, outputRate: 24_000, output: "context", connectTimeout: 15_000 };
const PLAYED_EVERY = 100; // milliseconds, while something is heard,
const ACKNOWLEDGED_WITHIN = 250; // and while nothing is,
const MOST_UNKNOWN = 200; // control messages, where more come than that
const LEVEL_EVERY = 50;
const STALE = 2_000; // milliseconds after which speech is of no use: the page was stuck

export class Voice {
  state = "idle";
  conversation;
  restored = null;
  muted = false;
  #url;
  #options;
  #mode;
  #sound = null;
  #session = null;
  #opened = deferred();
  #starting = null;
  #over = false;
  #floor = new Floor();
  #captions = new Captions();
  #talking = false;
  #frames = 0; // of speech, in this session
  #run = { id: null, text: "" }; // the latest
  #told = { generation: 0, samples: 0, seq: 0, at: 0, mode: null }; // what the server has been told of
  #levels = { input: 0, output: 0, at: 0 };
  #timer;

  constructor(url, options) {
    this.#url = url;
    this.#options = { ...DEFAULTS, ...options };
    this.#mode = this.#options.mode;
    this.conversation = options.conversation ?? null;
    this.#opened.promise.catch(() => {}); // no unhandled rejection where only the callbacks are used
  }

  /** Begin, from within a click or the like. */
  start() {
    if (!this.#starting) {
      this.#starting = this.#opened.promise;
      this.#start();
    }
    return this.#starting;
  }

  async #start() {
    this.#change("connecting");
    globalThis.addEventListener("pagehide", this.#leave);
    this.#options.signal?.addEventListener("abort", this.#leave);
    if (this.#options.signal?.aborted) return this.#leave();
    try {
      this.#sound = new Sound(this.#soundOptions());
      await this.#sound.open();
    } catch (error) {
      return this.#end({ error });
    }
    if (this.#over) return;
    this.#session = new Session(this.#url, this.#sessionOptions());
    this.#timer = setInterval(this.#heard, ACKNOWLEDGED_WITHIN); // a context that is suspended reports nothing
  }

  #soundOptions() {
    const { constraints, deviceId, speakerId, inputRate: rate, output } = this.#options;
    return {
      ...{ constraints, deviceId, speakerId, rate, route: output },
      onFrame: (frame) => this.#send(frame),
      onReport: () => this.#heard(),
      onChange: () => this.#tell("onDevices"),
      onProblem: (error) => this.#tell("onProblem", error),
    };
  }

  #sessionOptions() {
    const { credentials, connectTimeout } = this.#options;
    return {
      ...{ credentials, connectTimeout },
      greeting: (token) => (token ? this.#resumption(token) : this.#greeting()),
      onMessage: (message) => this.#receive(message),
      onAudio: (buffer) => this.#sound.speaker.play(parsePacket(buffer)),
      onUp: (message) => this.#rise(message),
      onDown: () => this.#show(),
      onOver: (outcome) => this.#end(outcome),
    };
  }

  /** Hang up. */
  async end() {
    this.#sound?.close(); // the microphone's light goes out at once
    if (this.#session) await this.#session.close();
    this.#end({ end: { code: 1000, reason: "The call has ended." } });
  }

  /** Silence the answer, here at once, and on the server. */
  interrupt() {
    if (!this.#session) return;
    this.#session.send({ type: "interrupt" });
    this.#hush();
  }

  /** Press the button, or let it go. Who presses it wants to be heard, so that the answer ends. */
  talk(on) {
    if (on === this.#talking) return;
    this.#talking = on;
    this.#session?.send({ type: "talk", on }); // else it is said when there is a line
    this.#floor.talk(on);
    if (on && this.#session) this.#hush();
    else this.#show();
  }

  #hush() {
    this.#sound.speaker.hush();
    this.#floor.hush();
    this.#show();
  }

  /** Say something by typing it. */
  say(text) {
    if (!this.#session) throw new LLMStreamError("The call has not begun.");
    this.#session.send({ type: "message", text });
    this.#floor.type();
    this.#show();
  }

  get mode() {
    return this.#mode;
  }

  set mode(mode) {
    if (mode === this.#mode) return;
    this.#mode = mode;
    if (this.#session?.isUp) this.#agree();
  }

  /** The server hears silence while it is on, so that it knows an utterance's end. */
  mute(on) {
    this.muted = on;
  }

  /** Change to another microphone. */
  async useMicrophone(deviceId) {
    this.#options.deviceId = deviceId;
    await this.#sound?.microphone.use(deviceId);
  }

  get stats() {
    const { rtt = null, dropped: framesDropped = 0 } = this.#session ?? {};
    const { dropped: packetsDropped = 0, report: { underruns = 0, queued = 0 } = {} } = this.#sound?.speaker ?? {};
    return { rtt, frames: this.#frames, framesDropped, packetsDropped, underruns, queued };
  }

  #greeting() {
    const { conversation, parent, language, voice, model, temperature, data } = this.#options;
    const given = { conversation, parent, language, voice, model, temperature, data };
    const [input, output] = [this.#options.inputRate, this.#options.outputRate].map(pcm);
    return { type: "start", mode: this.#mode, input, output, ...given };
  }

  /** What is queued here is sent again, from the place that is told. */
  async #resumption(token) {
    const { generation, samples: played } = await this.#sound.speaker.flush(Infinity);
    return { type: "resume", token, seq: this.#session.seq, generation, played };
  }

  #rise(message) {
    this.restored = message.restored ?? null;
    if (message.type === "ready") this.#begin(message);
    this.#told.seq = 0;
    this.#agree();
    this.#opened.resolve();
    this.#show();
  }

  #begin({ conversation = null, mode, input, output }) {
    for (const { format } of [input, output]) {
      if (format !== "pcm16") throw new ProtocolError(`The server wants to speak ${format}, not pcm16.`);
    }
    this.conversation = conversation ?? this.conversation;
    [this.#floor, this.#captions] = [new Floor(), new Captions()];
    this.#floor.talk(this.#talking);
    this.#frames = 0;
    this.#told = { generation: 0, samples: 0, seq: 0, at: 0, mode };
    this.#sound.microphone.tune(input.rate);
    this.#sound.speaker.begin(output.rate);
  }

  /** What the server has to know, whatever was said while there was no line. */
  #agree() {
    const mode = this.#mode;
    if (mode !== this.#told.mode && this.#session.send({ type: "mode", mode })) this.#told.mode = mode;
    if (this.#talking) this.#session.send({ type: "talk", on: true }); // with the line it was let go of
  }

  #send({ frame, level, at }) {
    this.#levels.input = this.muted ? 0 : level;
    if (!this.#session || (this.#mode === "push" && !this.#talking)) return;
    const age = this.#sound.age(at);
    if (this.muted) new Uint8Array(frame).fill(0);
    const sequence = this.#frames++; // one that is missing tells of what was dropped
    if (age < STALE) this.#session.sendAudio(stamped(frame, sequence, Math.round(performance.now() - age)));
  }

  #receive(message) {
    const { type, ...said } = message;
    if (type === "flush") this.#flush(message);
    else if (type === "sentence") this.#captions.add(message);
    else if (type === "transcript") this.#tell("onTranscript", { text: said.text, final: said.final });
    else if (type === "run") this.#begun(message);
    else if (type === "interrupted") this.#tell("onInterrupted", without(said));
    else if (type === "turn") this.#tell("onTurn", { run: said.run, ...said.timing });
    else if (type === "problem") this.#tell("onProblem", new ProblemError(said.problem));
    else if (said.run !== undefined && type !== "speaking") this.#event(without(said));
    this.#floor.receive(message);
    if (this.#session.seq - this.#told.seq >= MOST_UNKNOWN) this.#heard();
    this.#show();
  }

  #begun({ id, links = {} }) {
    this.#run = { id, text: "" };
    const base = this.#url.replace(/^ws/, "http");
    const location = links.self ? new URL(links.self, base).href : null;
    this.#tell("onRun", { id, location });
  }

  /** An event of a run's log. */
  #event(event) {
    this.#tell("onEvent", event);
    if (event.run !== this.#run.id) this.#run = { id: event.run, text: "" };
    if ("restarted" in event) this.#run.text = "";
    if (typeof event.token === "string") this.#run.text += event.token;
    for (const call of callsFor(event)) this.#tell(...call);
    if (!isTerminal(event)) return;
    if ("error" in event) this.#tell("onProblem", failureOf(event));
    else this.#tell("onRunEnd", endOf(event, this.#run.text));
  }

  async #flush({ generation: below }) {
    const flushed = this.#sound.speaker.flush(below);
    this.#captions.drop(below);
    const { generation, samples } = await flushed;
    this.#session.send({ type: "flushed", generation, samples });
  }

  /** What has come to be heard by now: told to the page, and to the server. */
  #heard = () => {
    if (!this.#session || this.#over || !this.#sound.speaker.isBegun) return;
    const { heard, report } = this.#sound.speaker;
    for (const { generation, text } of this.#captions.heard(heard)) this.#tell("onSentence", { generation, text });
    this.#floor.hear(heard);
    this.#acknowledge(heard, report);
    this.#measure(report);
    this.#show();
  };

  #acknowledge({ generation, samples, finished }, report) {
    const { seq } = this.#session;
    const now = performance.now();
    const moved = generation !== this.#told.generation || samples !== this.#told.samples;
    const ranDry = report.dry && report.generation === generation && report.samples === samples;
    const since = now - this.#told.at;
    const unknown = seq !== this.#told.seq && since >= ACKNOWLEDGED_WITHIN;
    const many = seq - this.#told.seq >= MOST_UNKNOWN;
    const due = many || (moved ? ranDry || finished || since >= PLAYED_EVERY : unknown);
    if (due && this.#session.send({ type: "played", generation, samples, seq })) {
      Object.assign(this.#told, { generation, samples, seq, at: now });
    }
  }

  #measure({ level }) {
    this.#levels.output = Math.max(level, this.#levels.output);
    const now = performance.now();
    if (now - this.#levels.at < LEVEL_EVERY) return;
    this.#tell("onLevel", loudness(this.#levels.input), loudness(this.#levels.output));
    Object.assign(this.#levels, { output: 0, at: now });
  }

  #leave = () => {
    this.end().catch(report);
  };

  #end({ end, error }) {
    if (this.#over) return;
    this.#over = true;
    clearInterval(this.#timer);
    globalThis.removeEventListener("pagehide", this.#leave);
    this.#options.signal?.removeEventListener("abort", this.#leave);
    this.#sound?.close();
    this.#opened.reject(error ?? new LLMStreamError(`The call ended before it began: ${end.reason}`));
    this.#change(error ? "failed" : "ended");
    if (error) this.#tell("onError", error);
    else this.#tell("onEnd", end);
  }

  #show() {
    if (this.#over) return;
    if (this.#session?.isUp) this.#change(this.#floor.state);
    else if (this.state !== "connecting" && this.#session) this.#change("reconnecting");
  }

  #change(state) {
    if (state === this.state) return;
    this.state = state;
    this.#tell("onState", state);
  }

  #tell(callback, ...args) {
    tell(this.#options, callback, ...args);
  }
}

const pcm = (rate) => ({ format: "pcm16", rate });

/** The number of a message is no part of what it says. */
const without = ({ seq: _, ...said }) => said;

/** From 0, 60 dB below the loudest, to 1; from a root mean square. */
const loudness = (level) => (level > 0 ? Math.max(0, Math.min(1, 1 + Math.log10(level) / 3)) : 0);
