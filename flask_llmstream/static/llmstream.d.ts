/** The states of a run as this page sees it; the last three are final. */
export type RunState = "connecting" | "streaming" | "reconnecting" | "completed" | "stopped" | "failed";

export type Phase = "queued" | "thinking" | "tool" | "writing";

/** A run's status, as its JSON has it; the last four are final. */
export type RunStatus = "queued" | "in_progress" | "completed" | "incomplete" | "failed" | "cancelled";

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  cached_tokens?: number;
  reasoning_tokens?: number;
  /** The provider did not report it, so it was counted. */
  estimated?: boolean;
}

export interface Tool {
  id: string;
  name: string;
  /** JSON text, as the model wrote it. */
  arguments: string;
  [more: string]: unknown;
}

/** What there is a limit of: answers at a time, one a conversation, and starts or tokens in a window of time. */
export type Limit = "runs" | "conversation" | "starts" | "tokens" | (string & {});

export interface RunPlace {
  id: string;
  /** Absolute. Fit for `resume`. */
  location: string;
  [more: string]: unknown;
}

/** Problem details (RFC 9457). */
export interface Problem {
  type?: string;
  title?: string;
  status?: number;
  detail?: string;
  /** Seconds. */
  retry_after?: number;
  /** Which limit is reached. */
  limit?: Limit;
  /** The visitor's runs that are live, where a limit is reached. */
  live?: RunPlace[];
  [extension: string]: unknown;
}

/** An event as it came: one of the keys, by which it is told, and what belongs to it. Others may come later. */
export interface RunEvent {
  token?: string;
  status?: Phase;
  reasoning?: string;
  tool?: Tool;
  progress?: number;
  message?: string;
  data?: unknown;
  restarted?: number;
  done?: true;
  error?: string;
  [more: string]: unknown;
}

/** How a run ended that did not fail. Besides these it has the terminal event's own members. */
export interface RunEnd {
  /** The whole answer: the same as `run.text`. */
  text: string;
  /** It was stopped, from this page or elsewhere. */
  cancelled: boolean;
  /** Null after a stop, or where nobody said. Anything but "stop" means that the answer is not whole. */
  finishReason: "stop" | "length" | "tool_calls" | "content_filter" | "log_full" | (string & {}) | null;
  tokens: number | null;
  usage: Usage | null;
  /** Milliseconds to the first token; null where there was none. */
  ttft_ms: number | null;
  total_ms: number | null;
  tokens_per_second: number | null;
  /** Milliseconds from the request to the function's start. */
  queue_ms?: number;
  /** What the function returned, where it returned a value. */
  result?: unknown;
  /** Bytes of a result that is too large for an event; it has been fetched. */
  result_size?: number;
  /** False: the server could not write the end down yet. */
  durable?: boolean;
  [more: string]: unknown;
}

export interface RunOptions {
  /** Sent with every request. A function is asked before each, so that a reconnect has a fresh token. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** As in `fetch`. "include" is needed for cookies of another origin. */
  credentials?: RequestCredentials;
  /** Aborting it stops the run, as `stop()` does. */
  signal?: AbortSignal | null;
  /** Spread a burst over the frames of the next 300 ms while the page is visible. Default true. */
  pace?: boolean;
  /** How many attempts in a row may bring nothing before the run counts as lost. Default 8, about a minute. */
  retries?: number;
  /**
   * Milliseconds that a response may take to begin, besides what sending a long body takes. Default 15000. A resume
   * waits one heartbeat at first, and doubles that up to this: connections that the browser kept may be dead too.
   */
  connectTimeout?: number;
  /** Characters of one event, beyond which the server is not believed. Default 8 Mi. */
  maxEventSize?: number;

  /** A piece of the answer. `run.text` has it already. */
  onToken?: (token: string) => void;
  onStatus?: (status: Phase) => void;
  /** A piece of the model's reasoning. */
  onReasoning?: (reasoning: string) => void;
  onTool?: (tool: Tool) => void;
  /** @param progress from 0 to 1. */
  onProgress?: (progress: number, message: string | undefined) => void;
  onData?: (data: unknown) => void;
  /** The text so far is void, and `run.text` is empty again: the server began anew. @param attempt 2 at first. */
  onRestart?: (attempt: number) => void;
  /** Called for each change, thus not for the first state, "connecting". */
  onState?: (state: RunState) => void;
  /** Each event, before the callback of its own. @param id null for an event that has no number. */
  onEvent?: (event: RunEvent, id: string | null) => void;
}

export interface StreamOptions extends RunOptions {
  /**
   * The idempotency key, of at least 128 bits: a start with the key of a run joins it. Without one it is random,
   * but a call with the URL and the body of one that is open on this page shares its key.
   */
  key?: string;
}

export interface ResumeOptions extends RunOptions {
  /** `run.cursor` of an earlier reader: read what follows it. Without it, everything. */
  after?: string | null;
  /** What that reader had: `run.text` begins with it. */
  text?: string;
}

/**
 * A run, and this page's place in it. Iterating gives the tokens, from the first that this reader has got, to each
 * iterator; after a restart it gives those of the new text. Leaving the loop early does not stop the run.
 */
export interface Run extends AsyncIterable<string> {
  /** Null until the server has answered. */
  readonly id: string | null;
  /** The run's absolute URL; null until the server has answered, or where CORS hides it. Fit for `resume`. */
  readonly location: string | null;
  /** The last event that was handed out: it goes with `text`, and is fit for `resume`. */
  readonly cursor: string | null;
  /** The answer so far. It stays after a failure. */
  readonly text: string;
  /** The idempotency key; null for a run that was resumed. */
  readonly key: string | null;
  readonly state: RunState;
  /** Rejects with the error of a run that failed. May be left alone: that is no unhandled rejection. */
  readonly done: Promise<RunEnd>;
  /**
   * Stops the run, for all its readers, and resolves when it has ended. Rejects when the server could not be told;
   * nothing is read any more even then, and `done` resolves as cancelled.
   */
  stop(): Promise<void>;
  [Symbol.asyncIterator](): AsyncGenerator<string, void, undefined>;
}

/**
 * Starts a run, and reads it to its end over as many connections as that takes.
 *
 * @param url of a stream feature.
 * @param body sent as JSON.
 */
export function stream(url: string | URL, body?: unknown, options?: StreamOptions): Run;

/**
 * Attaches to a run that exists, such as one that was started before the page was reloaded.
 *
 * @param location the run's URL, such as `run.location`.
 * @throws {TypeError} `after` is not a cursor.
 */
export function resume(location: string | URL, options?: ResumeOptions): Run;

/** An input: sent as multipart/form-data if it is a form or has files among its values, else as JSON. */
export type Input = FormData | object | string | number | boolean | null;

/** The states of a job as this page sees it; the last four are final. */
export type JobState = "starting" | "following" | "reconnecting" | "completed" | "stopped" | "failed" | "closed";

/** An event of a job: one of a run's, or how much of its input has gone out. */
export interface JobEvent extends Pick<
  RunEvent,
  "token" | "reasoning" | "tool" | "progress" | "message" | "data" | "restarted"
> {
  /** Bytes, those of the form around the files included. */
  upload?: { loaded: number; total: number };
  status?: Phase | "in_progress";
  [more: string]: unknown;
}

export interface FollowJobOptions extends Omit<RunOptions, "onState" | "onStatus" | "onEvent"> {
  /**
   * By the run's events, and by its status where these don't get through; or by its status from the first. What a
   * status does not have is not told then: `data`, `reasoning`, `tool`. Default "events".
   */
  follow?: "events" | "poll";
  /** A phase; "in_progress" for any but "queued" where the status alone is read. */
  onStatus?: (status: Phase | "in_progress") => void;
  /** Called for each change, thus not for the first state, "starting". */
  onState?: (state: JobState) => void;
  /** Each event but the last, before the callback of its own. @param id null for an event that has no number. */
  onEvent?: (event: JobEvent, id: string | null) => void;
  /** `job.cursor` of an earlier reader: read what follows it. Without it, everything that is kept. */
  after?: string | null;
  /** What that reader had: `job.text` begins with it. */
  text?: string;
}

export interface JobOptions extends Omit<FollowJobOptions, "after" | "text"> {
  /**
   * The idempotency key, of at least 128 bits: a start with the key of a job joins it. Without one it is random,
   * but a call with the URL and the input of one that is open on this page shares its key.
   */
  key?: string;
  /** The name under which this tab remembers the job, for `recallJob`. A later one of that name takes its place. */
  remember?: string;
  /** How many bytes have gone out. They begin anew when the input is sent again. */
  onUpload?: (loaded: number, total: number) => void;
}

/**
 * A job, and this page's place in it. Iterating gives the events but the last, from the first that this page has got,
 * to each iterator. Leaving the loop early does not stop the job.
 */
export interface Job extends AsyncIterable<JobEvent> {
  /** Null until the server has answered. */
  readonly id: string | null;
  /** The absolute URL of its status; null until the server has answered. Fit for `followJob`. */
  readonly location: string | null;
  /** The idempotency key; null for a job that is only followed. */
  readonly key: string | null;
  readonly state: JobState;
  /** What the server says of it; null until it has answered. */
  readonly status: RunStatus | null;
  /** How far the work is, from 0 to 1; null until that is known. */
  readonly progress: { progress: number; message: string | null } | null;
  /** The last event that was handed out: it goes with `text`, and is fit for `followJob`. */
  readonly cursor: string | null;
  /** The text so far. It stays after a failure. */
  readonly text: string;
  /** Rejects with the error of a job that failed. Its `result` is whole, however large. May be left alone. */
  readonly done: Promise<RunEnd>;
  /**
   * Stops the job, or its upload, and resolves when it has ended. Rejects when the server could not be told; nothing
   * is read any more even then, and `done` resolves as cancelled.
   */
  stop(): Promise<void>;
  /**
   * Follows it no longer, and gives its connection back; the job goes on. What is still being sent is broken off.
   * Iterating ends, and `done` rejects.
   */
  close(): void;
  [Symbol.asyncIterator](): AsyncGenerator<JobEvent, void, undefined>;
}

/**
 * Starts a job, and follows it to its end.
 *
 * @param url of a job feature.
 */
export function job(url: string | URL, input?: Input, options?: JobOptions): Job;

/**
 * Follows a job that exists, such as one of a list of earlier ones. One that has ended is read from its status alone.
 *
 * @param location the job's URL, such as `job.location`.
 */
export function followJob(location: string | URL, options?: FollowJobOptions): Job;

/**
 * Follows the job that this tab remembers under a name, such as after a reload; null where there is none. One whose
 * start was not answered yet is started again under its key, unless files were part of it.
 */
export function recallJob(name: string, options?: Omit<JobOptions, "key" | "remember">): Job | null;

export interface ReplyOptions extends Pick<JobOptions, "headers" | "credentials" | "retries" | "key" | "onUpload"> {
  /** Aborting it takes the question back: the promise rejects with the signal's reason. */
  signal?: AbortSignal | null;
  /** Milliseconds that the whole may take. Default 120000. */
  timeout?: number;
}

/**
 * Asks for one answer, and waits for it as a whole. While the server has no place, or a limit that passes is reached,
 * it is asked again when it says, under the same key.
 *
 * @param url of a reply feature.
 * @returns the object that the feature answers.
 */
export function reply<Answer = unknown>(url: string | URL, input?: Input, options?: ReplyOptions): Promise<Answer>;

/** The states of a feed as this page sees it; the last two are final. */
export type FeedState = "connecting" | "streaming" | "reconnecting" | "closed" | "failed";

/** A run as a feed tells of it. */
export interface RunNews extends RunPlace {
  /** The feature's name. */
  feature: string;
  status?: RunStatus;
  /** Where it belongs to one. */
  conversation?: string | null;
  /** Seconds since 1970. */
  created_at?: number;
  ended_at?: number | null;
}

export interface FeedOptions extends Pick<RunOptions, "headers" | "credentials" | "connectTimeout" | "maxEventSize"> {
  /** All that are live, at first and whenever it is told anew: a run that is not among them has ended. */
  onRuns?: (runs: RunNews[]) => void;
  onStarted?: (run: RunNews) => void;
  onEnded?: (run: RunNews) => void;
  /** Its owner wants nothing kept of it. */
  onForgotten?: (run: { id: string }) => void;
  /** Called for each change, thus not for the first state, "connecting". */
  onState?: (state: FeedState) => void;
  /** The feed has failed: the server does not let this page in. */
  onError?: (error: LLMStreamError) => void;
}

/** What the visitor's runs do, from whichever page or device they were started. */
export interface Feed {
  /** Those that are live, the oldest first. */
  readonly runs: RunNews[];
  readonly state: FeedState;
  close(): void;
}

/**
 * Follows what the visitor's runs do, for as long as the page is open. A line that dropped is taken up again where it
 * broke, however long that takes. While nobody sees the page the feed has no connection.
 *
 * @param url of the feed, `/api/runs/events`.
 */
export function watch(url: string | URL, options?: FeedOptions): Feed;

/** The states of a call as this page sees it; the last two are final. */
export type VoiceState =
  | "idle"
  | "connecting"
  /** It is the user's turn, who is silent. */
  | "listening"
  /** The user speaks. */
  | "hearing"
  /** An answer is awaited. */
  | "thinking"
  /** An answer is heard. */
  | "speaking"
  | "reconnecting"
  | "ended"
  | "failed";

/** By whom a turn is ended: by the server, which hears that the user has stopped, or by a button. */
export type VoiceMode = "auto" | "push";

/** Milliseconds since the end of what the user said; absent where unknown. */
export interface TurnTiming {
  run?: string;
  transcript_ms?: number;
  first_token_ms?: number;
  first_audio_ms?: number;
  /** When it was heard here, by this page's report. */
  played_ms?: number;
  /** From the onset of an interruption to the silence here. */
  silence_ms?: number;
  [more: string]: unknown;
}

/** An event of a run in a call: with the run's id. */
export interface VoiceEvent extends RunEvent {
  run: string;
}

export interface VoiceOptions {
  /** The conversation that goes on; without one, a new one begins. */
  conversation?: string | null;
  /** The message in it that the call follows. */
  parent?: string | null;
  /** Default "auto". */
  mode?: VoiceMode;
  /** What the user speaks, such as "en". */
  language?: string;
  /** The name of the voice that answers. */
  voice?: string;
  model?: string;
  temperature?: number;
  /** A feature's own fields. */
  data?: Record<string, unknown>;
  /** Samples a second of what is sent. Default 16000. */
  inputRate?: 16000 | 24000;
  /** Samples a second of what comes. Default 24000. */
  outputRate?: 16000 | 24000;
  /** A microphone of `audioDevices()`; without it, or where it is gone, the browser's choice. */
  deviceId?: string;
  /** A loudspeaker of `audioDevices()`, where the browser lets a page choose. Chrome may cancel no echo of it. */
  speakerId?: string;
  /** Of the microphone, beside or instead of echo cancellation, noise suppression and gain control, which are on. */
  constraints?: MediaTrackConstraints;
  /**
   * The way to the loudspeaker: the audio context's own, or an `<audio>` element's, which takes a little longer. Current
   * browsers cancel the echo of either; for one that cancels none of a context, "element" may be worth a try. Default
   * "context".
   */
  output?: "context" | "element";
  /** As in `fetch`: of the question why a call was refused. A WebSocket always carries the cookies of its host. */
  credentials?: RequestCredentials;
  /** Milliseconds until the server must have taken the call. Default 15000. */
  connectTimeout?: number;
  /** Aborting it ends the call, as `end()` does. */
  signal?: AbortSignal | null;

  /** Called for each change. */
  onState?: (state: VoiceState) => void;
  /** What the user says, as far as it is understood: the whole utterance, each time. */
  onTranscript?: (transcript: { text: string; final: boolean }) => void;
  /** A turn's run has begun. @param run its `location` is fit for `resume`; null where the server does not say. */
  onRun?: (run: { id: string; location: string | null }) => void;
  /** Each event of a run, before the callback of its own. */
  onEvent?: (event: VoiceEvent) => void;
  /** A piece of the answer, as it is written: ahead of what is heard. */
  onToken?: (token: string) => void;
  onStatus?: (status: Phase) => void;
  onReasoning?: (reasoning: string) => void;
  onTool?: (tool: Tool) => void;
  onProgress?: (progress: number, message: string | undefined) => void;
  onData?: (data: unknown) => void;
  onRestart?: (attempt: number) => void;
  /** A run has ended that did not fail; its answer may still be spoken. */
  onRunEnd?: (end: RunEnd & { run: string }) => void;
  /** A sentence of the answer, in the moment in which it begins to be heard. */
  onSentence?: (sentence: { text: string; generation: number }) => void;
  /** What is kept of an answer that was interrupted: that of it which was heard. */
  onInterrupted?: (answer: { run: string; heard: string; played_ms: number }) => void;
  onTurn?: (timing: TurnTiming) => void;
  /** How loud it is, 20 times a second. @param input from 0, which is 60 dB below the loudest, to 1. */
  onLevel?: (input: number, output: number) => void;
  /** Microphones or loudspeakers have come or gone. */
  onDevices?: () => void;
  /** Something failed, and the call goes on. A sentence for the user is in its `message`. */
  onProblem?: (error: LLMStreamError) => void;
  /** The call has ended, as calls do. */
  onEnd?: (end: { code: number; reason: string }) => void;
  /** The call has failed, or did not come about. A sentence for the user is in its `message`. */
  onError?: (error: LLMStreamError) => void;
}

/** A call: the user speaks, and is spoken to. What of an answer is heard is what the conversation keeps. */
export interface Voice {
  readonly state: VoiceState;
  /** Its conversation; null until the server has named it. */
  readonly conversation: string | null;
  /** What was left after the last time that the line broke; "none" before. Null until the call is up. */
  readonly restored: "none" | "history" | "full" | null;
  readonly muted: boolean;
  /** May be set at any time. */
  mode: VoiceMode;
  /**
   * `rtt`, milliseconds to the server and back, null until known; `frames` of speech, and how many of them were dropped
   * on the way out; packets of answers that came too late; how often an answer stopped for want of audio; and seconds
   * of audio that wait to be heard.
   */
  readonly stats: {
    rtt: number | null;
    frames: number;
    framesDropped: number;
    packetsDropped: number;
    underruns: number;
    queued: number;
  };
  /**
   * Begins the call, from within a click or the like: browsers let a page sound, and ask for the microphone, in answer
   * to the user alone. Resolves when the server listens. May be left alone: `onError` is told too.
   */
  start(): Promise<void>;
  /** Hangs up. The microphone is given back at once. */
  end(): Promise<void>;
  /** Silences the answer. */
  interrupt(): void;
  /** Presses the button (true), or lets it go; in the mode "push" the user is heard in between. */
  talk(on: boolean): void;
  /** Says something by typing it. */
  say(text: string): void;
  /** Sends silence instead of what the microphone hears. */
  mute(on: boolean): void;
  /** Changes to another microphone. Rejects where it can't be had. */
  useMicrophone(deviceId: string): Promise<void>;
}

/**
 * A call. It begins with its `start()`, and breaks of the line are made up for while the server waits for its return.
 *
 * @param url of a voice feature, by http, https, ws or wss.
 */
export function voice(url: string | URL, options?: VoiceOptions): Voice;

export interface AudioDevice {
  id: string;
  /** Empty until the user has allowed the microphone once. */
  label: string;
}

/** The microphones and loudspeakers that there are. */
export function audioDevices(): Promise<{ microphones: AudioDevice[]; speakers: AudioDevice[] }>;

/** The root of the errors that a run ends with. */
export class LLMStreamError extends Error {}

/** The server refused the request, or the run failed. */
export class ProblemError extends LLMStreamError {
  constructor(problem: Problem, retryAfter?: number | null);
  readonly problem: Problem;
  readonly status: number | null;
  /** A URI that names the kind, such as "urn:problem-type:flask-llmstream:upstream-rate-limited". */
  readonly type: string;
  readonly title: string | null;
  /** A sentence for a person; the same as `message` where there is one. */
  readonly detail: string | null;
  /** Seconds after which the same may succeed. */
  readonly retryAfter: number | null;
  /** Which limit is reached, where it is one. */
  readonly limit: Limit | null;
  /** The visitor's live runs, where a limit is reached: stop one, or show it. */
  readonly live: RunPlace[];
}

/** The server could not be reached any more. The run may still be going on: `resume` attaches to it again. */
export class ConnectionLostError extends LLMStreamError {}

/** The server sent something that is not this protocol. */
export class ProtocolError extends LLMStreamError {}

/** There is no microphone, or the browser lets nothing sound. `message` says what to do. */
export class DeviceError extends LLMStreamError {
  /**
   * insecure: the page did not come by HTTPS; unsupported: an old browser; policy: the page may not ask; denied,
   * dismissed: the user said no, or nothing; system: the operating system says no; missing: there is none; busy:
   * another program has it; unplugged: it has gone, and no other is there; suspended: a click is needed.
   */
  readonly kind:
    | "insecure"
    | "unsupported"
    | "policy"
    | "denied"
    | "dismissed"
    | "system"
    | "missing"
    | "busy"
    | "unplugged"
    | "suspended";
}

/** The server broke a call off. */
export class CallEndedError extends LLMStreamError {
  /** With which the WebSocket was closed. */
  readonly code: number;
}
