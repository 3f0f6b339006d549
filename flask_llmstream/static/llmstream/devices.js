/** Why there is no microphone, in a sentence for the person before it; and which devices there are. */

import { DeviceError } from "./errors.js";

const SENTENCES = {
  insecure: "Browsers give the microphone only to pages that came by HTTPS. Open this page by its https:// address.",
  unsupported: "This browser can't capture and play speech. A current Chrome, Edge, Firefox or Safari can.",
  policy: "This page may not use the microphone: its server, or the page that it is shown in, forbids it.",
  denied: "The microphone is blocked for this page. Allow it in the address bar or the site's settings, and try again.",
  dismissed: "The browser asked for the microphone, and got no answer. Try again, and allow it.",
  system: "The operating system keeps the microphone from the browser. Allow it in the system's privacy settings.",
  missing: "No microphone was found. Plug one in, and try again.",
  busy: "The microphone can't be opened. Perhaps another program is using it: close that, and try again.",
  unplugged: "The microphone is gone, and no other was found. Plug one in.",
  suspended: "The browser holds the sound back. Click or tap on the page to go on.",
};

const KINDS = {
  NotAllowedError: "denied",
  SecurityError: "policy",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
  AbortError: "busy",
};

export const deviceError = (kind, cause) => new DeviceError(kind, SENTENCES[kind], { cause });

/** What `getUserMedia` failed with, as an error that a person understands. */
export function explained(cause) {
  let kind = KINDS[cause?.name];
  if (kind === undefined) return cause;
  if (kind === "denied") {
    if (/by system/i.test(cause.message)) kind = "system";
    else if (/dismissed/i.test(cause.message)) kind = "dismissed";
    else if (!isAllowed("microphone")) kind = "policy";
  }
  return deviceError(kind, cause);
}

const isAllowed = (feature) => (document.permissionsPolicy ?? document.featurePolicy)?.allowsFeature(feature) ?? true;

/** Refuse where there is no use in asking. */
export function requireSupport() {
  if (globalThis.isSecureContext === false) throw deviceError("insecure");
  if (!navigator.mediaDevices?.getUserMedia || !globalThis.AudioWorkletNode) throw deviceError("unsupported");
}

/** `{microphones, speakers}`, each a list of `{id, label}`. Labels are empty until a microphone has been allowed. */
export async function audioDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  const of = (wanted) =>
    devices.filter(({ kind }) => kind === wanted).map(({ deviceId: id, label }) => ({ id, label }));
  return { microphones: of("audioinput"), speakers: of("audiooutput") };
}
