/**
 * Markdown from a stranger, as safe elements: what a model writes is hostile input.
 *
 * marked makes HTML of it, in which HTML that the model wrote itself is only shown as text; DOMPurify then lets
 * through the few elements and attributes that Markdown needs; the page's Content-Security-Policy is behind both.
 */

import DOMPurify from "./vendor/dompurify/purify.es.mjs";
import { Marked } from "./vendor/marked/marked.esm.js";

const ELEMENTS = [
  "a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong",
  "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
];
const NO_ADDRESSES = ["align", "data-language", "start"]; // DOMPurify takes every attribute for an address
const HARMLESS_HTML = /^<\/?(?:br|sub|sup)\s*\/?>$/i; // models use these in tables, which have no other way
const WEB_ADDRESS = /^(?:https?|mailto):/i;

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => (HARMLESS_HTML.test(text.trim()) ? text : escape(text)),
    // An image's address can carry what was said in the conversation to any server: a link loads nothing unasked.
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    // The page's own headings are h1 and h2.
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    code: (token) =>
      `<pre data-language="${escape(languageOf(token))}"><code>${escape(token.text)}\n</code></pre>\n`,
  },
});

const purifier = DOMPurify(window);

// The hook runs on each element that was let through.
purifier.addHook("afterSanitizeAttributes", (element) => {
  if (element.tagName !== "A" || !element.hasAttribute("href")) return;
  element.setAttribute("target", "_blank");
  element.setAttribute("rel", "noopener noreferrer nofollow");
  element.setAttribute("title", element.getAttribute("href")); // a link's text need not tell where it leads
});

/** The Markdown of `source` as a fragment of safe elements. */
export function render(source) {
  return renderTokens(marked.lexer(source));
}

/**
 * A text that grows, shown as Markdown in `element`.
 *
 * Only the last block can still change, so only that is parsed and drawn again, at most once a frame. `finish`
 * draws everything once more, where a link's address came later than the link.
 */
export class GrowingMarkdown {
  #element;
  #text = "";
  #settled = 0; // how much of the text is in blocks that no longer change
  #tail = []; // the nodes of the block that still may
  #tailType = null;
  #frame = 0;
  #drawn;

  /** @param {() => void} drawn called after each drawing, to keep what is new in sight */
  constructor(element, drawn = () => {}) {
    this.#element = element;
    this.#drawn = drawn;
  }

  append(text) {
    this.#text += text;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** Begin again with nothing. */
  clear() {
    this.#forget();
    this.#text = "";
    this.#element.replaceChildren();
  }

  /** Draw what is left to draw: the text is whole. */
  finish() {
    const tokens = marked.lexer(this.#text);
    if (Object.keys(tokens.links).length > 0) {
      this.#forget();
      this.#element.replaceChildren(renderTokens(tokens));
    } else {
      this.#draw();
    }
    this.#drawn();
  }

  #forget() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#settled = 0;
    this.#tail = [];
    this.#tailType = null;
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const tokens = marked.lexer(this.#text.slice(this.#settled));
    const last = tokens.findLastIndex((token) => token.type !== "space");
    if (last === -1) return;
    if (last > 0 || tokens[0].type !== "code" || this.#tailType !== "code" || !this.#growCode(tokens[0])) {
      this.#replaceTail(tokens, last);
    }
    this.#tailType = tokens[last].type;
    this.#drawn();
  }

  #replaceTail(tokens, last) {
    for (const node of this.#tail) node.remove();
    const settled = tokens.slice(0, last);
    this.#settled += settled.reduce((length, token) => length + token.raw.length, 0);
    this.#element.append(renderTokens(settled, tokens.links));
    const tail = renderTokens(tokens.slice(last), tokens.links);
    this.#tail = [...tail.childNodes];
    this.#element.append(tail);
  }

  /** Code only grows: with its element kept, its Copy button can be pressed and its text be selected. */
  #growCode(token) {
    const pre = this.#element.lastElementChild?.querySelector("pre");
    if (pre?.dataset.language !== languageOf(token)) return false; // its name may still be growing
    const text = `${token.text}\n`;
    if (text !== pre.textContent) pre.firstElementChild.textContent = text;
    return true;
  }
}

function renderTokens(tokens, links = tokens.links) {
  const fragment = purified(marked.parser(Object.assign([...tokens], { links })));
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  for (const table of fragment.querySelectorAll("table")) frameTable(table);
  return fragment;
}

/** HTML from anywhere as a fragment of harmless elements. */
export function purified(html) {
  return purifier.sanitize(html, {
    ALLOWED_TAGS: ELEMENTS,
    ALLOWED_ATTR: ["href", ...NO_ADDRESSES],
    ALLOWED_URI_REGEXP: WEB_ADDRESS,
    ADD_URI_SAFE_ATTR: NO_ADDRESSES,
    ALLOW_ARIA_ATTR: false,
    ALLOW_DATA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}

/** Code gets a bar with its language and a Copy button. */
function frameCode(pre) {
  const figure = document.createElement("figure");
  const bar = document.createElement("figcaption");
  const language = document.createElement("span");
  const copy = document.createElement("button");
  language.textContent = pre.dataset.language;
  copy.type = "button";
  copy.className = "quiet";
  copy.dataset.action = "copy-code";
  copy.textContent = "Copy";
  bar.append(language, copy);
  pre.replaceWith(figure);
  pre.tabIndex = 0; // it scrolls sideways, also by keyboard
  figure.className = "code";
  figure.append(bar, pre);
}

/** A table wider than the page scrolls inside a frame of its own. */
function frameTable(table) {
  const frame = document.createElement("div");
  frame.className = "table";
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", "Table");
  table.replaceWith(frame);
  frame.append(table);
}

function languageOf({ lang = "" }) {
  return lang.split(/\s/)[0] || "text";
}

function escape(text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
