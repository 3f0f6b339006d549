export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A promise with what settles it: {promise, resolve, reject}. */
export function deferred() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
}
