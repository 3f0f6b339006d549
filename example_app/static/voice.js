/** The page of the call. */

import { Conversations, idInAddress, pathOf } from "./conversations.js";
import { Lines } from "./lines.js";
import { announce, find, inWords, showFailure } from "./page.js";

const { client: CLIENT, voice: VOICE, settings: SETTINGS, conversations: CONVERSATIONS, chat: CHAT } =
  document.body.dataset;
const HEARD_HERE = "heardHere" in document.body.dataset; // in English, and in the only voice that there is
const { audioDevices, voice } = await import(CLIENT);

const LIVE = ["listening", "hearing", "thinking", "speaking"];
const TIMES = ["transcript_ms", "first_token_ms", "first_audio_ms", "played_ms", "silence_ms"];
const STATES = {
  connecting: "Connecting… Allow the microphone if your browser asks.",
  hearing: "I hear you.",
  thinking: "Thinking…",
  reconnecting: "The line dropped. Reconnecting…",
};
const ACTS = { hearing: "Hearing", thinking: "Thinking", speaking: "Interrupt", listening: "Listening" };
const WAYS = {
  auto: { listening: "Listening. Just speak.", speaking: "Speaking. Speak too, and it falls silent." },
  push: { listening: "Hold the button, and speak.", speaking: "Speaking. Hold the button, and it falls silent." },
};

const button = find("#talk");
const microphone = find("#microphone");
const lines = new Lines(find("#lines"));
let call = null; // the one that goes on
let conversation = idInAddress();
let microphoneId = null;

const isLive = () => call !== null && LIVE.includes(call.state);
const mode = () => find("[name=mode]:checked").value;

/* A call */

async function begin() {
  call = voice(VOICE, {
    ...preferred, // as far as it is known by now: a gesture of the user's does not wait
    conversation,
    mode: mode(),
    deviceId: microphoneId ?? undefined,
    onState: show,
    onTranscript: lines.hear.bind(lines),
    onRun,
    onToken: (token) => lines.write(token),
    onSentence: ({ text }) => lines.speak(text),
    onInterrupted: ({ run, heard }) => lines.cut(run, heard),
    onTurn,
    onLevel,
    onDevices: listMicrophones,
    onProblem: (problem) => complain(inWords(problem)),
    onEnd: ({ reason }) => end(reason),
    onError: (error) => end("", inWords(error)),
  });
  complain();
  try {
    await call.start();
  } catch {
    return; // told by onError
  }
  remember();
  listMicrophones();
}

function end(reason, failure = "") {
  call = null;
  onLevel(0, 0);
  show(failure ? "failed" : "ended");
  find("#state").textContent = reason;
  announce(reason);
  complain(failure);
  button.focus();
}

function onRun({ id }) {
  complain(); // what was wrong before is not any more
  lines.begin(id);
}

function onTurn({ run, ...timing }) {
  for (const name of TIMES) if (name in timing) find(`#${name}`).textContent = `${Math.round(timing[name])} ms`;
  find("#timing").hidden = false;
  if (run) turn = run;
}

let turn = null; // which has been told of as over, though its answer may still be heard

function onLevel(input, output) {
  find("#input").value = input;
  find("#output").value = output;
  button.style.setProperty("--level", call?.state === "speaking" ? output : input);
}

/** The call's conversation is in the page's address, and goes on after a reload, and in the chat. */
function remember() {
  if (!call?.conversation) return;
  conversation = call.conversation;
  history.replaceState(null, "", `#${conversation}`);
  find("#elsewhere a").href = `${CHAT}#${conversation}`;
  find("#elsewhere").hidden = false;
}

/* The page's parts */

function show(state) {
  const before = find("#call").dataset.state;
  find("#call").dataset.state = state;
  const words = STATES[state] ?? WAYS[mode()][state];
  if (words) find("#state").textContent = words;
  if (state === "reconnecting" || (LIVE.includes(state) && state !== "hearing")) announce(words);
  if (before === "reconnecting" && isLive() && call.restored === "history") lines.lose();
  if (state === "listening" && turn) lines.finish(turn);
  if (state === "listening") turn = null;
  refresh();
}

function refresh() {
  const during = call !== null;
  const speaking = during && ["speaking", "thinking"].includes(call.state);
  for (const id of ["#end", "#say"]) find(id).hidden = !during;
  find("#mute").hidden = !during || mode() === "push";
  find("#interrupt").hidden = !speaking;
  find("#talk .act").textContent = during ? (mode() === "push" ? "Hold to talk" : (ACTS[call.state] ?? "…")) : "Call";
  button.disabled = during && !isLive();
}

function complain(text = "") {
  showFailure(find("#refused"), text);
}

async function listMicrophones() {
  const { microphones } = await audioDevices();
  const named = microphones.filter(({ label }) => label);
  microphone.replaceChildren(...named.map(({ id, label }) => new Option(label, id, false, id === microphoneId)));
  find("#microphones").hidden = named.length < 2;
}

async function changeMicrophone() {
  microphoneId = microphone.value;
  try {
    await call?.useMicrophone(microphoneId);
    complain();
  } catch (error) {
    complain(inWords(error));
  }
}

/* The button: it calls, and where it has to be held, it is held */

function press(event) {
  if (mode() !== "push" || !isLive()) return;
  event.preventDefault();
  button.setPointerCapture?.(event.pointerId);
  call.talk(true);
}

const release = () => call?.talk(false);

function holdKey(event) {
  if (event.code !== "Space" || event.target.matches("input, select, textarea")) return;
  if (mode() !== "push" || !isLive()) return;
  event.preventDefault(); // it would click what has the focus
  if (!event.repeat) call.talk(event.type === "keydown");
}

function listen() {
  button.addEventListener("click", () => {
    if (!call) begin();
    else if (mode() === "auto" && call.state === "speaking") call.interrupt();
  });
  button.addEventListener("pointerdown", press);
  for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(type, release);
  button.addEventListener("contextmenu", (event) => event.preventDefault()); // of a finger that holds it
  document.addEventListener("keydown", holdKey);
  document.addEventListener("keyup", holdKey);
  window.addEventListener("blur", release);
  find("#end").addEventListener("click", () => call?.end());
  find("#interrupt").addEventListener("click", () => call?.interrupt());
  document.addEventListener("keydown", ({ key }) => key === "Escape" && isLive() && call.interrupt());
  find("#mute").addEventListener("click", () => {
    call.mute(!call.muted);
    find("#mute").setAttribute("aria-pressed", call.muted);
    find("#mute").textContent = call.muted ? "Muted" : "Mute";
  });
  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => {
      if (call) call.mode = mode();
      if (call) show(call.state);
      else refresh();
    });
  }
  microphone.addEventListener("change", changeMicrophone);
  find("#say").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find("#text").value.trim();
    if (!text || !isLive()) return;
    lines.add("user", text);
    call.say(text);
    find("#text").value = "";
  });
  setInterval(() => {
    const rtt = call?.stats.rtt;
    if (rtt != null) find("#rtt").textContent = `${Math.max(1, Math.round(rtt))} ms`;
  }, 1000);
}

/* What was said before, and what the visitor prefers */

let preferred = {};

async function prefer() {
  if (HEARD_HERE) return;
  const { voice, language } = await (await fetch(SETTINGS)).json();
  preferred = { language: language || undefined, voice };
}

async function recall() {
  if (!conversation) return;
  try {
    for (const { role, content } of pathOf(await new Conversations(CONVERSATIONS).read(conversation))) {
      lines.add(role, content);
    }
  } catch (error) {
    if (![404, 410].includes(error.status)) return complain(error.message);
    conversation = null; // it was deleted, or never begun
    history.replaceState(null, "", location.pathname);
  }
}

listen();
refresh();
await Promise.allSettled([prefer(), recall()]);
