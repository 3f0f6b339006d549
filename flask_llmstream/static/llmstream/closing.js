/** What the code means with which a call's WebSocket was closed. */

import { CallEndedError, Interruption } from "./errors.js";

const ENDS = {
  1000: "The call has ended.",
  4408: "The call has ended, for nothing was said for a long time.",
  4409: "The call goes on in another window.",
  4410: "The call has lasted as long as a call may.",
};

const FAILURES = {
  1002: "The call broke off: the server did not understand this page.",
  1003: "The call broke off: the server does not take this kind of data.",
  1007: "The call broke off: the server did not understand this page.",
  1008: "The call broke off: this page sent more than the server allows.",
  1009: "The call broke off: a message was too large for the server.",
  1010: "The call broke off: the server lacks an extension.",
  4400: "The call broke off: the server did not understand a message.",
  4401: "The call needs a sign-in.",
  4403: "This call is not allowed.",
  4404: "There is no such conversation any more.",
  4429: "The call broke off: a limit has been reached.",
};

const PASSING = {
  1001: "the server is going away",
  1011: "the server had an error",
  1012: "the server is being restarted",
  1013: "the server has no place for the call",
  3008: "the server heard nothing for a while",
};

/**
 * What a close comes to.
 *
 * @returns `{end: {code, reason}}` of a call that ended as calls do; `{error}` of one that failed; or `{passing}`, an
 *   interruption after which the call may go on
 */
export function meaningOf({ code, reason }) {
  const said = reason && `${reason[0].toUpperCase()}${reason.slice(1)}`.replace(/(?<![.!?])$/, ".");
  if (code in ENDS) return { end: { code, reason: said || ENDS[code] } };
  const final = code in FAILURES || (code >= 3000 && !(code in PASSING));
  if (final) return { error: new CallEndedError(code, said || FAILURES[code] || "The server ended the call.") };
  return { passing: new Interruption(PASSING[code] ?? "the connection broke") };
}
