/** The page: what the visitor does, the one run that may be going on, and where its events are shown. */

import { AnswerView, questionElement } from "./answer.js";
import { Conversation } from "./conversation.js";
import { Stopwatch, endInWords } from "./figures.js";
import { Follow } from "./follow.js";

const { chat: CHAT, client: CLIENT } = document.body.dataset;
const { stream, resume } = await import(CLIENT);

const CUT_SHORT = {
  length: "Cut off at the greatest length",
  content_filter: "Ended by the content filter",
  log_full: "Cut off: too long to be kept",
};

const SILENT = 3000; // milliseconds without a word, after which the page says that it waits

const find = (selector) => document.querySelector(selector);
const question = find("#question");
const conversation = new Conversation();
const follow = new Follow(find("#latest"));
let current = null; // {run, record, view}, while an answer is being written
let lastView = null;

function send(text) {
  if (current || !text.trim()) return;
  conversation.ask(text.trim());
  show(questionElement(text.trim()));
  answer();
}

/** Have the last question answered; an answer that it already has makes way. */
function answer() {
  if (current) return;
  if (conversation.lastAnswer) lastView.element.remove();
  const record = conversation.beginAnswer();
  const model = find("#model")?.value.trim();
  if (model) record.model = model;
  follow.toEnd();
  begin(record, (options) => stream(CHAT, requestFor(record), { key: record.key, ...options }));
}

/** Find the answer again that was being written when the page was left. */
function takeUp(record) {
  if (record.location) begin(record, (options) => resume(record.location, options));
  else if (record.key) begin(record, (options) => stream(CHAT, requestFor(record), { key: record.key, ...options }));
  else end(record, newView(), { state: "failed", note: "The page was left before the answer began." });
}

function requestFor({ model }) {
  return { messages: conversation.forModel(), ...(model && { model }) };
}

async function begin(record, start) {
  const view = newView();
  const watch = new Stopwatch();
  const run = start(callbacks(record, view, watch));
  const mine = (current = { run, record, view });
  const ticking = setInterval(() => {
    view.showFigures(watch.words);
    if (watch.silence > SILENT) view.showPhase("silent");
  }, 250);
  view.showPhase("connecting");
  refresh();
  const outcome = await outcomeOf(run, watch);
  clearInterval(ticking);
  if (current !== mine) return;
  current = null;
  end(record, view, { content: run.text, ...outcome, note: mine.note ?? outcome.note });
}

function callbacks(record, view, watch) {
  return {
    onToken(token) {
      watch.arrived();
      view.append(token);
    },
    onReasoning(text) {
      watch.arrived();
      view.appendReasoning(text);
    },
    onTool(tool) {
      watch.arrived(false);
      view.addTool(tool);
    },
    onStatus: (phase) => view.showPhase(phase),
    onRestart: () => view.restart(),
    onState(state) {
      if (current?.record !== record) return; // a new chat has begun meanwhile
      if (state === "streaming") {
        record.location = current.run.location;
        conversation.save();
      }
      if (state === "reconnecting") announce("The line dropped. Reconnecting.");
      refresh(state);
    },
  };
}

async function outcomeOf(run, watch) {
  try {
    const done = await run.done;
    const figures = endInWords({ ...done, tokens_per_second: done.tokens_per_second ?? done.tokensPerSecond });
    if (done.cancelled) return { state: "stopped", note: "Stopped", figures: watch.words };
    return { state: "done", note: CUT_SHORT[done.finishReason], figures };
  } catch (error) {
    return { state: "failed", note: sentenceFor(error), figures: watch.words };
  }
}

function sentenceFor(error) {
  const wait = error.retryAfter ? ` Try again in ${Math.ceil(error.retryAfter)} s.` : "";
  return `${error.message}${wait}`;
}

function end(record, view, outcome) {
  Object.assign(record, outcome);
  conversation.save();
  view.end(outcome);
  announce(outcome.state === "failed" ? `The answer failed. ${outcome.note}` : view.words(outcome.note));
  refresh();
}

async function stop() {
  const mine = current;
  if (!mine) return;
  find("#stop").disabled = true;
  question.focus();
  try {
    await mine.run.stop();
  } catch (error) {
    mine.note = `Stopped here, but perhaps not on the server. ${error.message}`;
  }
}

function startOver() {
  current?.run.stop().catch(() => {}); // nobody is left to be told
  current = lastView = null;
  conversation.clear();
  find("#messages").replaceChildren();
  refresh();
  question.focus();
}

function newView() {
  lastView?.settle();
  lastView = new AnswerView(() => follow.grown());
  show(lastView.element);
  return lastView;
}

function show(element) {
  find("#messages").append(element);
  follow.grown();
}

/** Bring the controls in line with what is going on. */
function refresh(state = current?.run.state) {
  const running = current !== null;
  const empty = conversation.messages.length === 0;
  find("#welcome").hidden = !empty;
  find("#new").hidden = empty;
  find("#line").hidden = !(running && state === "reconnecting");
  find("#stop").hidden = !running;
  find("#stop").disabled = false;
  find("#send").disabled = running || !question.value.trim();
}

function announce(text) {
  find("#announcer").textContent = text;
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

async function copy(button, text) {
  await navigator.clipboard.writeText(text);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function listen() {
  find("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (current) return;
    send(question.value);
    question.value = "";
    fitQuestion();
    refresh();
    question.focus();
  });
  question.addEventListener("input", () => {
    fitQuestion();
    refresh();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("#composer").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });
  find("#stop").addEventListener("click", stop);
  find("#new").addEventListener("click", startOver);
  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button?.dataset.question) send(button.dataset.question);
    else if (button?.dataset.action) act(button);
    else return;
    if (!button.dataset.action?.startsWith("copy")) question.focus();
  });
}

function act(button) {
  const { action } = button.dataset;
  if (action === "copy-code") copy(button, button.closest("figure").querySelector("code").textContent);
  else if (action === "copy") copy(button, contentOf(button.closest("article")));
  else answer();
}

/** The text of an answer as the model wrote it. */
function contentOf(article) {
  const shown = [...find("#messages").children].indexOf(article);
  return conversation.messages[shown].content;
}

function restore() {
  for (const message of conversation.messages) {
    if (message.role === "user") show(questionElement(message.content));
    else if (message.state === "running") takeUp(message);
    else restoreAnswer(message);
  }
  follow.toEnd();
  refresh();
}

function restoreAnswer(message) {
  const view = newView();
  view.append(message.content);
  view.end(message);
}

document.body.classList.toggle("no-clipboard", !navigator.clipboard);
listen();
restore();
