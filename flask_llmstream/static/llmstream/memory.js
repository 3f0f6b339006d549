const LONGEST_BODY = 65_536; // characters

/**
 * What a tab keeps of a job under a name, so that the page finds it again after a reload: the start, and once it is
 * known the run's address. A body is kept only where it is JSON, and short; files can't be read again.
 */
export class Memory {
  #name;

  constructor(name) {
    this.#name = `llmstream:${name}`;
  }

  /** What is kept: {url, key, body, location}; null where nothing is. */
  get kept() {
    try {
      return JSON.parse(sessionStorage.getItem(this.#name));
    } catch {
      return null; // no storage, as where cookies are blocked
    }
  }

  keep({ url, key, body }) {
    this.#put({ url, key, body: typeof body === "string" && body.length <= LONGEST_BODY ? body : null });
  }

  locate(key, location) {
    const { kept } = this;
    if (kept && kept.key === key) this.#put({ ...kept, body: null, location });
  }

  /** A later job of the same name stays. */
  forget(key) {
    if (this.kept?.key === key) this.#put(null);
  }

  #put(entry) {
    try {
      if (entry) sessionStorage.setItem(this.#name, JSON.stringify(entry));
      else sessionStorage.removeItem(this.#name);
    } catch {
      // no storage, or no room in it
    }
  }
}
