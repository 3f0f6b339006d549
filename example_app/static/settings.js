/** The settings page: shows what is kept, and saves what was changed, unless another page has been faster. */

import { errorsInWords, find, showFailure } from "./page.js";

const { settings: SETTINGS } = document.body.dataset;
const form = find("#settings");
const failure = form.querySelector(".failure");
let tag = null; // of what this page shows

async function ask(init) {
  let response;
  try {
    response = await fetch(SETTINGS, { cache: "no-store", ...init });
  } catch {
    return { problem: { detail: "The server cannot be reached. What you have changed is still here." } };
  }
  const said = await response.json().catch(() => ({}));
  if (!response.ok) return { problem: { detail: "The server could not do that.", ...said, status: response.status } };
  tag = response.headers.get("ETag");
  return { settings: said };
}

async function read() {
  const { settings, problem } = await ask({ method: "GET" });
  complain(problem);
  if (settings) show(settings);
}

async function save() {
  find("#save").disabled = true;
  find("#saved").textContent = "Saving…";
  const headers = { "Content-Type": "application/json", "If-Match": tag };
  const { settings, problem } = await ask({ method: "PUT", headers, body: JSON.stringify(entered()) });
  complain(problem);
  find("#saved").textContent = settings ? "Saved." : "";
  find("#save").disabled = false;
  if (settings) show(settings);
}

function entered() {
  const { model, temperature, instructions, language, voice } = form.elements;
  return {
    model: model.value.trim() || null,
    temperature: temperature.validity.badInput ? "?" : temperature.value === "" ? null : Number(temperature.value),
    instructions: instructions.value.trim(),
    language: language.value,
    voice: voice.value,
  };
}

function show(settings) {
  for (const [name, value] of Object.entries(settings)) form.elements[name].value = value ?? "";
  find("#save").disabled = false;
}

function complain(problem) {
  const errors = problem?.errors ?? {};
  for (const field of form.querySelectorAll("[name]")) {
    const said = errorsInWords(errors[field.name] ?? []).join(" ");
    field.setAttribute("aria-invalid", String(Boolean(said)));
    find(`#${field.id}-error`).textContent = said;
  }
  form.querySelector("[aria-invalid=true]")?.focus();
  showFailure(failure, problem && !problem.errors ? problem.detail : "");
  find("#reread").hidden = problem?.status !== 412;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
form.addEventListener("input", () => (find("#saved").textContent = ""));
find("#reread").addEventListener("click", read);
await read();
