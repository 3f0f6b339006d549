/** What the pages beside the chat have in common. */

export const find = (selector) => document.querySelector(selector);

/** Say something to those who hear the page. */
export function announce(text) {
  find("#announcer").textContent = text;
}

/** Show a failure, or with no text, that there is none. */
export function showFailure(box, text = "") {
  box.hidden = !text;
  box.querySelector("p").textContent = text;
}

/** What went wrong, and what to do, in a sentence or two. */
export function inWords(error) {
  const { message, problem, retryAfter } = error;
  const fields = problem?.errors ? `: ${errorsInWords(problem.errors).join(" ")}` : "";
  const wait = retryAfter ? ` Try again in ${Math.ceil(retryAfter)} s.` : "";
  return `${fields && problem.title ? problem.title + fields : message}${wait}`;
}

/** Errors by field, however deep, each as a sentence. @returns {string[]} */
export function errorsInWords(errors, path = []) {
  if (Array.isArray(errors)) {
    const place = path.filter((name) => name !== "_schema").join(".");
    return errors.map((error) => (place ? `${place}: ${error}` : String(error)));
  }
  return Object.entries(errors).flatMap(([name, inner]) =>
    typeof inner === "string" ? errorsInWords([inner], [...path, name]) : errorsInWords(inner, [...path, name]),
  );
}

/** An element with a text in it. */
export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}
