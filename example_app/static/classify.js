/** The page that tells what a text sounds like. */

import { announce, find, inWords, showFailure } from "./page.js";

const { client: CLIENT, classify: CLASSIFY } = document.body.dataset;
const { reply } = await import(CLIENT);

const text = find("#text");
const parts = { doing: find(".doing"), outcome: find(".outcome") };
let asking = null; // what is given up when another text is sent

async function classify() {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  show("doing");
  try {
    const { sentiment } = await reply(CLASSIFY, { text: text.value }, { signal });
    find(".sentiment").textContent = sentiment[0].toUpperCase() + sentiment.slice(1);
    find(".sentiment").dataset.is = sentiment;
    show("outcome");
    announce(`It sounds ${sentiment}.`);
  } catch (error) {
    if (signal.aborted) return;
    show(null);
    showFailure(find("#work .failure"), inWords(error));
    announce(inWords(error));
  }
}

function show(name) {
  find("#work").hidden = false;
  showFailure(find("#work .failure"));
  for (const [part, box] of Object.entries(parts)) box.hidden = part !== name;
}

find("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (text.value.trim()) classify();
});
text.addEventListener("input", () => (find("#send").disabled = !text.value.trim()));
find("#send").disabled = !text.value.trim(); // after a reload there may be one
