/** The list of conversations: which is open, in which an answer is being written, rename, export and delete. */

const AT_ONCE = 30;
const MOST_AT_ONCE = 100;

export class Sidebar {
  #conversations;
  #told;
  #listed = null; // the latest first
  #more = false;
  #items = new Map(); // their elements, by id
  #open = null;
  #answering = new Set();
  #refreshing = null;
  #stale = false;
  #find;

  /**
   * @param {HTMLElement} element with the list and what belongs to it
   * @param {{renamed(conversation), deleted(id), failed(error)}} told called when the visitor has done so, or could not
   */
  constructor(element, conversations, told) {
    this.#conversations = conversations;
    this.#told = told;
    this.#find = (selector) => element.querySelector(selector);
    this.#find("#older").addEventListener("click", () => this.#older());
    this.#find("ul").addEventListener("click", (event) => this.#clicked(event));
    this.#find("ul").addEventListener("submit", (event) => this.#submitted(event));
    this.#find("ul").addEventListener("keydown", (event) => this.#pressed(event));
  }

  /** What the open conversation is called, as far as that is known. */
  get title() {
    return this.#listed?.find(({ id }) => id === this.#open)?.title;
  }

  lists(id) {
    return this.#listed?.some((known) => known.id === id);
  }

  set open(id) {
    this.#open = id;
    this.#draw();
  }

  /** @param {Set<string>} ids of the conversations in which an answer is being written */
  set answering(ids) {
    this.#answering = ids;
    this.#draw();
  }

  /** Have the list as it is now, if that is possible now. Calls meanwhile become one more. */
  refresh() {
    this.#stale = true;
    return (this.#refreshing ??= this.#refresh());
  }

  async #refresh() {
    try {
      while (this.#stale) {
        this.#stale = false;
        const limit = Math.min(Math.max(this.#listed?.length ?? 0, AT_ONCE), MOST_AT_ONCE);
        const { data, has_more } = await this.#conversations.list({ limit });
        [this.#listed, this.#more] = [data, has_more];
        this.#draw();
      }
    } catch {
      // The feed comes back together with the server, and the list is asked for again.
    } finally {
      this.#stale = false;
      this.#refreshing = null;
    }
  }

  async #older() {
    await this.#try(async () => {
      const before = this.#listed.at(-1).id;
      const { data, has_more } = await this.#conversations.list({ limit: AT_ONCE, before });
      this.#listed.push(...data);
      this.#more = has_more;
    });
  }

  #draw() {
    if (!this.#listed) return;
    const list = this.#find("ul");
    const ids = new Set(this.#listed.map(({ id }) => id));
    for (const [id, item] of this.#items) {
      if (ids.has(id)) continue;
      item.remove();
      this.#items.delete(id);
    }
    for (const [place, conversation] of this.#listed.entries()) {
      const item = this.#item(conversation);
      // Only what has another place is moved: an element that is moved loses the focus.
      if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
    }
    this.#find("#none").hidden = this.#listed.length > 0;
    this.#find("#older").hidden = !this.#more;
  }

  #item({ id, title, links }) {
    if (!this.#items.has(id)) this.#items.set(id, blank(id));
    const item = this.#items.get(id);
    const link = item.querySelector("a");
    const isOpen = id === this.#open;
    link.querySelector(".title").textContent = title ?? "Untitled";
    link.title = title ?? "";
    link.toggleAttribute("aria-current", isOpen);
    if (isOpen) link.setAttribute("aria-current", "page");
    item.querySelector(".answering").hidden = !this.#answering.has(id);
    item.querySelector(".actions").hidden = !isOpen || !item.querySelector("form").hidden;
    item.querySelector("[download]").href = `${links.export}?format=markdown`;
    return item;
  }

  #clicked({ target }) {
    const act = target.closest("[data-act]")?.dataset.act;
    const item = target.closest("li");
    if (act === "rename") this.#beginRenaming(item);
    else if (act === "delete") this.#delete(item);
  }

  #beginRenaming(item) {
    const input = item.querySelector("input");
    input.value = item.querySelector(".title").textContent;
    renaming(item, true);
    input.select();
  }

  #pressed(event) {
    if (event.key !== "Escape" || event.target.tagName !== "INPUT") return;
    event.preventDefault(); // that would close the list, where it lies over the page
    event.stopPropagation(); // and stop the answer
    renaming(event.target.closest("li"), false);
  }

  async #submitted(event) {
    event.preventDefault();
    const item = event.target.closest("li");
    const title = item.querySelector("input").value.trim();
    renaming(item, false);
    if (!title) return;
    await this.#try(async () => {
      const renamed = await this.#conversations.rename(item.dataset.id, title);
      this.#listed = this.#listed.map((known) => (known.id === renamed.id ? renamed : known));
      this.#told.renamed(renamed);
    });
  }

  async #delete(item) {
    const { id } = item.dataset;
    const dialog = document.querySelector("#deleting");
    dialog.querySelector("q").textContent = item.querySelector(".title").textContent;
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "delete") return;
    await this.#try(async () => {
      await this.#conversations.remove(id);
      this.#listed = this.#listed.filter((known) => known.id !== id);
      this.#told.deleted(id);
    });
  }

  /** Do what the visitor wants, and show what came of it. */
  async #try(action) {
    try {
      await action();
    } catch (error) {
      this.#told.failed(error);
    }
    this.#draw();
  }
}

function blank(id) {
  const item = document.querySelector("#conversation-template").content.firstElementChild.cloneNode(true);
  item.dataset.id = id;
  item.querySelector("a").href = `#${id}`;
  return item;
}

function renaming(item, on) {
  item.querySelector("form").hidden = !on;
  item.querySelector("a").hidden = on;
  item.querySelector(".actions").hidden = on;
  item.querySelector(on ? "input" : "[data-act=rename]").focus();
}
