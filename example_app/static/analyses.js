/** The analyses that the server still has, the latest first. Only this browser knows what their files were called. */

import { element } from "./page.js";

const STORED = "analyses";
const STATES = { queued: "waiting", in_progress: "in progress", cancelled: "stopped", failed: "failed" };
const time = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export class Analyses {
  #section;
  #url;
  #asked = 0;

  constructor(section, runs) {
    this.#section = section;
    this.#url = `${runs}?feature=analyze`;
  }

  name(id) {
    return names()[id];
  }

  /** Remember what the file of an analysis is called. */
  keep(id, name) {
    store({ ...names(), [id]: name });
  }

  /** Show which one the address names. */
  mark() {
    for (const link of this.#section.querySelectorAll("a")) {
      if (link.hash === location.hash) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  async refresh() {
    const asked = ++this.#asked;
    const before = names(); // one that is named from now on may not be in the list yet
    const response = await fetch(this.#url, { cache: "no-store" }).catch(() => null);
    const list = response?.ok ? await response.json().catch(() => null) : null;
    if (!list || asked !== this.#asked) return; // what is shown stays until there is something newer
    const runs = list.data;
    const listed = new Set(runs.map(({ id }) => id));
    const known = names();
    store(Object.fromEntries(Object.entries(known).filter(([id]) => listed.has(id) || !(id in before))));
    this.#section.hidden = !runs.length;
    this.#section.querySelector("ul").replaceChildren(...runs.map((run) => entry(run, known[run.id])));
    this.mark();
  }
}

function entry({ id, status, created_at: created }, name = "A document") {
  const link = element("a", "", { href: `#${id}` });
  const at = new Date(created * 1000);
  link.append(
    element("span", name, { class: "name" }),
    element("span", STATES[status] ?? "", { class: "state", "data-state": status }),
    element("time", time.format(at), { datetime: at.toISOString() }),
  );
  const item = element("li");
  item.append(link);
  return item;
}

function names() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {}; // no storage, as where cookies are blocked
  }
}

function store(names) {
  try {
    localStorage.setItem(STORED, JSON.stringify(names));
  } catch {
    // as above
  }
}
