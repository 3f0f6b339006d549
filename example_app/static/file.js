/** The form that takes a file: chosen or dropped, looked at before it is sent, and refused with what to do. */

import { find, showFailure } from "./page.js";

const ENDINGS = /\.(pdf|md|markdown|txt|text)$/i;
const MEGABYTE = 2 ** 20;

export class FileForm {
  file = null;
  #form = find("#ask");
  #input = find("#file");
  #drop = find(".drop");
  #send = find("#send");
  #busy = false;

  /** @param {(file: File) => void} onSend called with a file that may be sent */
  constructor(onSend) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.file && !this.#busy) onSend(this.file);
    });
    this.#input.addEventListener("change", () => this.#choose(this.#input.files));
    for (const type of ["dragenter", "dragover"]) this.#drop.addEventListener(type, (event) => this.#over(event, true));
    for (const type of ["dragleave", "drop"]) this.#drop.addEventListener(type, (event) => this.#over(event, false));
    this.#drop.addEventListener("drop", ({ dataTransfer }) => this.#choose(dataTransfer.files));
    // Beside it, a browser would leave the page for the file.
    for (const type of ["dragover", "drop"]) window.addEventListener(type, (event) => event.preventDefault());
    for (const button of this.#form.querySelectorAll("[data-sample]")) {
      button.addEventListener("click", () => this.#take(button.dataset.sample));
      button.disabled = false;
    }
    this.#choose(this.#input.files); // before this script was there
  }

  set busy(busy) {
    this.#busy = busy;
    this.#send.disabled = busy || !this.file;
  }

  /** Say why the file was not taken. */
  refuse(text) {
    showFailure(find("#refused"), text);
  }

  #over(event, over) {
    event.preventDefault();
    this.#drop.classList.toggle("over", over);
  }

  async #take(sample) {
    const response = await fetch(sample).catch(() => null);
    if (!response?.ok) return this.refuse("The server cannot be reached. Try again.");
    this.#choose([new File([await response.blob()], sample.split("/").pop())]);
  }

  #choose(files) {
    const [file] = files;
    if (!file) return; // the dialog was left
    const refusal = files.length > 1 ? "One file at a time, please." : this.#refusal(file);
    this.file = refusal ? null : file;
    find("#chosen").textContent = `${file.name} · ${size(file.size)}`;
    this.refuse(refusal);
    this.#input.value = ""; // or the same file could not be chosen again once it is mended
    this.busy = this.#busy;
    if (this.file) this.#send.focus();
  }

  /** What can be seen without sending it. Whether it is what its name says, the server finds out. */
  #refusal({ name, size: bytes }) {
    const largest = Number(this.#form.dataset.largest);
    if (!ENDINGS.test(name)) return "Only PDF, Markdown and text files are read here. Save it as one of these first.";
    if (!bytes) return "This file is empty. Choose another one.";
    if (bytes > largest) {
      return `This file is too large: it has ${size(bytes)}, and at most ${size(largest)} are taken. Send a part of it.`;
    }
    return "";
  }
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < MEGABYTE) return `${Math.round(bytes / 1024)} KB`;
  return `${(bytes / MEGABYTE).toFixed(bytes < 10 * MEGABYTE ? 1 : 0)} MB`;
}
