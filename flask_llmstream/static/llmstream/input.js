import { LLMStreamError } from "./errors.js";

/**
 * How an input goes out: as multipart/form-data if it is a form or has files in it, else as JSON. In a form each value
 * but text and files is JSON; the files of an array are so many fields of one name.
 *
 * @returns `body`, its `headers`, and `identity`, a text that is the same for the same input
 */
export function encoded(input) {
  const form = input instanceof FormData ? input : hasFiles(input) ? formOf(input) : null;
  if (form) return { body: form, headers: {}, identity: JSON.stringify(Array.from(form, identify)) };
  const body = JSON.stringify(input);
  return { body, headers: { "Content-Type": "application/json" }, identity: body };
}

/** Refuse a form with a file that was changed or removed since it was chosen: no browser sends it any more. */
export async function requireReadable(body) {
  for (const file of body instanceof FormData ? body.values() : []) {
    if (!isFile(file)) continue;
    const reader = file.stream().getReader(); // a slice of a file that is gone would merely be empty
    try {
      await reader.read();
    } catch (cause) {
      throw new LLMStreamError(`The file ${file.name} can't be read any more. Choose it again.`, { cause });
    } finally {
      reader.cancel().catch(() => {});
    }
  }
}

const isFile = (value) => value instanceof Blob;
const isFiles = (value) =>
  (globalThis.FileList && value instanceof FileList) ||
  (Array.isArray(value) && value.length > 0 && value.every(isFile));
const hasFiles = (input) => Object.values(input ?? {}).some((value) => isFile(value) || isFiles(value));

function formOf(input) {
  const form = new FormData();
  for (const [name, value] of Object.entries(input)) {
    if (isFiles(value)) for (const file of value) form.append(name, file);
    else if (isFile(value) || typeof value === "string") form.append(name, value);
    else if (value !== undefined) form.append(name, JSON.stringify(value));
  }
  return form;
}

/** A form makes files of all blobs, so that each has these; what a file holds can't be known without reading it. */
const identify = ([name, value]) =>
  isFile(value) ? [name, value.name, value.size, value.type, value.lastModified] : [name, value];
