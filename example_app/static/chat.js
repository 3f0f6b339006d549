/** The page: what the visitor does, the conversation that is open, and the answers that are being written. */

import { Conversations, idInAddress, newId, pathOf } from "./conversations.js";
import { Stopwatch } from "./figures.js";
import { Follow } from "./follow.js";
import { keptOutcome, outcomeOf } from "./outcome.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";

const { chat: CHAT, client: CLIENT, conversations: CONVERSATIONS, feed: FEED, runs: RUNS } = document.body.dataset;
const { stream, resume, watch } = await import(CLIENT);

const SILENT = 3000; // milliseconds without a word, after which the page says that it waits
const NOT_KEPT_YET = [100, 300, 1000]; // milliseconds: a feed may be faster than what it tells of

const find = (selector) => document.querySelector(selector);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const question = find("#question");
const conversations = new Conversations(CONVERSATIONS);
const follow = new Follow(find("#latest"));
const thread = new Thread(find("#messages"), follow);
const answers = new Map(); // what is being written, by conversation: {run, question, answer}, wherever the page is
const sidebar = new Sidebar(find("#chats"), conversations, {
  renamed: () => entitle(),
  deleted: (id) => id === thread.id && startOver(),
  failed: (error) => complain(error.message),
});
let live = []; // the visitor's runs, as the feed tells of them

/* Asking and answering */

function send(text) {
  if (answers.has(thread.id) || !text.trim()) return;
  if (!thread.id) {
    thread.id = newId();
    history.pushState(null, "", `#${thread.id}`);
    sidebar.open = thread.id;
  }
  start(thread.ask(text.trim()));
}

/** Have the last question answered anew, as another branch: the answer that it has makes way on the page. */
function again() {
  if (answers.has(thread.id)) return;
  const asked = thread.dropAnswer();
  start(asked, { parent: thread.before(asked) });
}

function start(asked, where = {}) {
  const model = find("#model")?.value.trim();
  const body = { conversation: thread.id, message: asked.content, ...where, ...(model && { model }) };
  follow.toEnd();
  begin(asked, thread.answer(), (options) => stream(CHAT, body, options));
}

async function begin(asked, answer, open) {
  const { view } = answer;
  const watch = new Stopwatch();
  const conversation = thread.id;
  const run = open(callbacks(conversation, view, watch));
  answers.set(conversation, { run, question: asked, answer });
  const ticking = setInterval(() => {
    view.showFigures(watch.words);
    if (watch.silence > SILENT) view.showPhase("silent");
  }, 250);
  view.showPhase("connecting");
  refresh();
  const outcome = await outcomeOf(run, watch);
  clearInterval(ticking);
  end(conversation, outcome);
}

function callbacks(conversation, view, watch) {
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
      if (state === "streaming") know(answers.get(conversation));
      if (conversation !== thread.id) return;
      if (state === "reconnecting") announce("The line dropped. Reconnecting.");
      refresh(state);
    },
  };
}

/** The server has taken the question: both messages have their names now. */
function know({ run, question, answer }) {
  if (!run.id || answer.id) return;
  answer.id = run.id;
  question.id = `${run.id}.q`;
  list();
}

function end(conversation, { error, ...outcome }) {
  const written = answers.get(conversation);
  const { run, answer } = written;
  answers.delete(conversation);
  know(written);
  answer.content = run.text;
  answer.inTheWay = inTheWay(error, conversation);
  const note = written.note ?? outcome.note;
  const busy = answer.inTheWay && { shown: answer.inTheWay.conversation !== undefined };
  answer.view.end({ ...outcome, note, content: run.text, busy });
  list();
  if (conversation !== thread.id) return;
  announce(outcome.state === "failed" ? `The answer failed. ${note}` : answer.view.words(note));
  refresh();
}

async function stop() {
  const written = answers.get(thread.id);
  if (!written) return;
  find("#stop").disabled = true;
  question.focus();
  try {
    await written.run.stop();
  } catch (error) {
    written.note = `Stopped here, but perhaps not on the server. ${error.message}`;
  }
}

/* Where another answer is in the way */

/** The run that keeps another from starting: the one of this conversation, else the oldest. */
function inTheWay(error, here) {
  if (!["runs", "conversation"].includes(error?.limit) || !error.live.length) return undefined;
  const known = error.live.map((run) => ({ ...live.find(({ id }) => id === run.id), ...run }));
  return known.find(({ conversation }) => conversation === here) ?? known[0];
}

async function makeWay({ location }) {
  const [conversation, busy] = [thread.id, find("#messages")];
  busy.inert = true; // a second click would be for nothing
  try {
    await resume(location).stop();
  } catch (error) {
    complain(`The other answer could not be stopped. ${error.message}`);
  }
  busy.inert = false;
  if (conversation === thread.id) again();
}

/* Conversations */

/** Open a conversation; without an id, a new one. */
async function open(id) {
  thread.leave(id);
  sidebar.open = id;
  find("#notice").hidden = true;
  announce("");
  refresh();
  if (!id) return; // what a new one has to say begins at the top
  await load();
  follow.toEnd();
}

/** Show what the server keeps of the open conversation, and go on with the answer that is being written. */
async function load() {
  const { id } = thread;
  find("#messages").setAttribute("aria-busy", "true");
  try {
    const kept = await conversations.read(id);
    if (id === thread.id) showAll(pathOf(kept));
    return kept;
  } catch (error) {
    if (id === thread.id && !answers.has(id)) complainOfLoading(error);
    else if (id === thread.id) showAll([]);
  } finally {
    find("#messages").setAttribute("aria-busy", "false");
    refresh();
  }
}

function showAll(path) {
  const written = answers.get(thread.id);
  const mine = written ? [written.question, written.answer] : [];
  // What this page has asked itself, and shows already, may not know yet what the server calls it.
  const begun = path.findIndex(({ status }) => status === "in_progress");
  mine.forEach((message, nth) => (message.id ??= path[begun - 1 + nth]?.id ?? null));
  thread.show(path, fill, mine);
  if (written && !thread.at(written.answer.element)) thread.putBack(...mine);
  entitle();
}

function fill(answer, message) {
  answer.content = message.content;
  if (message.status === "in_progress") {
    const asked = thread.messages.at(-2);
    begin(asked, answer, (options) => resume(`${RUNS}/${message.run}`, options));
  } else {
    answer.view.append(message.content);
    answer.view.end({ ...keptOutcome(message), content: message.content });
  }
}

/** Another page has asked something in the open conversation, or what it asked has ended. */
async function catchUp(run) {
  for (const wait of NOT_KEPT_YET) {
    if (!run.conversation || run.conversation !== thread.id || answers.has(thread.id)) return;
    const kept = await load();
    if (!kept || kept.messages.some(({ id }) => id === run.id)) return;
    await pause(wait);
  }
}

/** @param {string} conversation that has to be among the listed */
async function list(conversation) {
  for (const wait of NOT_KEPT_YET) {
    await sidebar.refresh();
    entitle();
    if (!conversation || sidebar.lists(conversation)) return;
    await pause(wait);
  }
}

function startOver() {
  history.pushState(null, "", location.pathname + location.search);
  open(null);
  question.focus();
}

function entitle() {
  document.title = [thread.id && sidebar.title, "Chat · Flask-LLMStream"].filter(Boolean).join(" · ");
}

/* What the visitor's other pages do */

function heard(runs, { conversation } = {}) {
  live = runs;
  sidebar.answering = new Set(runs.map((run) => run.conversation));
  list(conversation);
}

function listenToFeed() {
  const feed = watch(FEED, {
    onRuns(runs) {
      heard(runs);
      runs.forEach(catchUp);
    },
    onStarted(run) {
      heard(feed.runs, run);
      catchUp(run);
    },
    onEnded(run) {
      heard(feed.runs);
      if (!thread.messages.some(({ id }) => id === run.id)) catchUp(run);
    },
    onForgotten: () => heard(feed.runs),
  });
}

/* The page's parts */

/** Bring the controls in line with what is going on. */
function refresh(state = answers.get(thread.id)?.run.state) {
  const running = answers.has(thread.id);
  find("#welcome").hidden = thread.id !== null;
  find("#new").hidden = thread.id === null;
  find("#line").hidden = !(running && state === "reconnecting");
  find("#stop").hidden = !running;
  find("#stop").disabled = false;
  find("#send").disabled = running || !question.value.trim();
}

function announce(text) {
  find("#announcer").textContent = text;
}

function complain(text) {
  find("#notice").hidden = false;
  find("#notice p").textContent = text;
  find("#notice button").hidden = true;
}

function complainOfLoading({ message, status }) {
  const gone = [404, 410].includes(status);
  complain(gone ? "This conversation is not here: it was deleted, or it is not yours." : message);
  find("#notice button").hidden = gone;
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
    if (answers.has(thread.id)) return;
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
    // Where something lies over the page, the key closes that.
    if (event.key === "Escape" && !document.querySelector("dialog[open], :popover-open")) stop();
  });
  find("#stop").addEventListener("click", stop);
  find("#new").addEventListener("click", startOver);
  document.addEventListener("click", ({ target }) => {
    if (target.closest("#chats a:not([download])")) find("#chats").hidePopover();
    const button = target.closest("button");
    if (button?.dataset.question) send(button.dataset.question);
    else if (button?.dataset.action) act(button);
    else return;
    if (!button.dataset.action?.startsWith("copy")) question.focus();
  });
  window.addEventListener("hashchange", () => {
    open(idInAddress());
    question.focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") list();
  });
}

function act(button) {
  const { action } = button.dataset;
  const message = thread.at(button.closest("article"));
  if (action === "copy-code") copy(button, button.closest("figure").querySelector("code").textContent);
  else if (action === "copy") copy(button, message.content);
  else if (action === "show") show(message.inTheWay);
  else if (action === "make-way") makeWay(message.inTheWay);
  else if (action === "reload") open(thread.id);
  else again();
}

function show({ conversation }) {
  if (conversation === thread.id) load();
  else location.hash = conversation;
}

document.body.classList.toggle("no-clipboard", !navigator.clipboard);
listen();
listenToFeed();
await Promise.all([open(idInAddress()), list()]);
