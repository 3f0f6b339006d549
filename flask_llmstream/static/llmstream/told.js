/** What an event is told by: the callbacks among the options. */

const TOLD = {
  token: "onToken",
  restarted: "onRestart",
  status: "onStatus",
  reasoning: "onReasoning",
  tool: "onTool",
  data: "onData",
};

/** The calls that an event comes to, each with its callback's name first. */
export function callsFor(event) {
  if (event.upload) return [["onUpload", event.upload.loaded, event.upload.total]];
  if ("progress" in event) return [["onProgress", event.progress, event.message]];
  return Object.entries(TOLD)
    .filter(([kind]) => kind in event)
    .map(([kind, callback]) => [callback, event[kind]]);
}

/** Call the page back, where it wants to be; what it throws there is its own. */
export function tell(options, callback, ...args) {
  try {
    options[callback]?.(...args);
  } catch (error) {
    report(error);
  }
}

/** An error that is nobody's here, such as a callback's own. */
export const report = (error) => (globalThis.reportError ?? console.error)(error);
