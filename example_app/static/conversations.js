/** The visitor's conversations, as the server keeps them. */

export class Conversations {
  #url;

  constructor(url) {
    this.#url = url;
  }

  /** A page of the list, the latest first. @param {string} before the id of the last one that is known */
  list({ limit, before }) {
    const query = new URLSearchParams({ limit, ...(before && { before }) });
    return this.#ask("GET", `?${query}`);
  }

  read(id) {
    return this.#ask("GET", `/${id}`);
  }

  rename(id, title) {
    return this.#ask("PATCH", `/${id}`, { title });
  }

  remove(id) {
    return this.#ask("DELETE", `/${id}`);
  }

  async #ask(method, path, body) {
    const init = body && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    let response;
    try {
      response = await fetch(this.#url + path, { method, cache: "no-store", ...init });
    } catch {
      throw new ConversationError("The server cannot be reached.");
    }
    const said = await response.json().catch(() => null);
    if (!response.ok) throw new ConversationError(said?.detail ?? "The server could not do that.", response.status);
    return said;
  }
}

export class ConversationError extends Error {
  /** @param {number} status of HTTP; undefined where there was no answer */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The messages that lead to the one that was added last: a question that was asked anew has a branch of its own. */
export function pathOf({ messages, head }) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const path = [];
  for (let message = byId.get(head); message; message = byId.get(message.parent)) path.unshift(message);
  return path;
}

/** An id for a conversation that begins. `randomUUID` is missing on pages that did not come by HTTPS. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The id in the page's address. */
export function idInAddress() {
  return /^#([\w-]{16,64})$/.exec(location.hash)?.[1] ?? null;
}
