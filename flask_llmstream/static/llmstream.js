/** The client's doors: what a page calls, and the classes of errors that it may meet. */

import { Feed } from "./llmstream/feed.js";
import { encoded } from "./llmstream/input.js";
import { Job } from "./llmstream/job.js";
import { claim } from "./llmstream/keys.js";
import { Memory } from "./llmstream/memory.js";
import { replyTo } from "./llmstream/reply.js";
import { Run } from "./llmstream/run.js";
import { Voice } from "./llmstream/voice.js";

export { audioDevices } from "./llmstream/devices.js";
export {
  CallEndedError,
  ConnectionLostError,
  DeviceError,
  LLMStreamError,
  ProblemError,
  ProtocolError,
} from "./llmstream/errors.js";

/** Starts a run. A call with the URL and body of one that is open on this page reads that one too. */
export function stream(url, body = {}, options = {}) {
  const question = { url: absolute(url), body: JSON.stringify(body) };
  return new Run(claimed(question, question.body, options), {}, options);
}

/** Attaches to a run that exists, such as one that was started before the page was reloaded. */
export function resume(location, { after, text, ...options } = {}) {
  return new Run(null, { location: absolute(location), after, text }, options);
}

/** Starts a job, and follows it. A call with the URL and input of one that is open on this page follows that one. */
export function job(url, input = {}, options = {}) {
  const { identity, ...content } = encoded(input);
  return started({ url: absolute(url), ...content }, identity, options);
}

/** Follows a job that exists, such as one of a list of earlier ones. */
export function followJob(location, { after, text, ...options } = {}) {
  return new Job(null, { location: absolute(location), after, text }, options);
}

/** The job that this tab remembers under a name, followed again; null where there is none. */
export function recallJob(name, options = {}) {
  const memory = new Memory(name);
  const { kept } = memory;
  if (!kept) return null;
  const { url, key, body, location } = kept;
  if (location) return new Job(null, { location, key }, { ...options, remember: name });
  if (body !== null) {
    return started({ url, ...encoded(JSON.parse(body)) }, body, { ...options, key, remember: name });
  }
  memory.forget(key); // its files went with the page
  return null;
}

/** Asks for one answer, and waits for it as a whole. */
export async function reply(url, input = {}, options = {}) {
  const { identity, ...content } = encoded(input);
  const question = claimed({ url: absolute(url), ...content }, identity, options);
  try {
    return await replyTo(question, options);
  } finally {
    question.release();
  }
}

/** Follows what an owner's runs do, wherever they were started. */
export function watch(url, options = {}) {
  return new Feed(absolute(url), options);
}

/** A call, to be started from within a click: the user speaks, and is spoken to. */
export function voice(url, options = {}) {
  return new Voice(absolute(url).replace(/^http/, "ws"), options);
}

const started = (question, identity, options) => new Job(claimed(question, identity, options), {}, options);

const claimed = (question, identity, { key }) => ({ ...question, ...claim(`${question.url}\n${identity}`, key) });

const absolute = (url) => new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href;
