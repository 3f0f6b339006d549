/** The invoice page: sends a file, shows the object that it becomes, and the answers that were refused on the way. */

import { FileForm } from "./file.js";
import { InvoiceView } from "./invoice.js";
import { announce, find, inWords } from "./page.js";

const { client: CLIENT, extract: EXTRACT, feed: FEED } = document.body.dataset;
const { reply, resume, watch } = await import(CLIENT);

const view = new InvoiceView(find("#work"));
const form = new FileForm(extract);
let asking = null; // {abort, run}: the run is known once the feed has told of it

async function extract(file) {
  const abort = new AbortController();
  asking = { abort, run: null };
  form.busy = true;
  form.refuse("");
  view.begin(file.name);
  announce(`Reading ${file.name}.`);
  try {
    view.end(await reply(EXTRACT, { file }, { signal: abort.signal }));
    announce("Done.");
  } catch (error) {
    view.fail(abort.signal.aborted ? "It was stopped." : inWords(error));
  }
  asking = null;
  form.busy = false;
}

/** An answer comes as one; what happens until then is in the log of its run. */
function started({ feature, location }) {
  if (feature !== "extract" || !asking || asking.run) return;
  asking.run = resume(location, {
    onData: ({ rejected }) => rejected && view.reject(rejected),
    onRestart: () => view.restart(),
  });
}

async function stop() {
  const { abort, run } = asking;
  abort.abort();
  await run?.stop();
}

find("#stop").addEventListener("click", stop);
watch(FEED, { onRuns: (runs) => runs.forEach(started), onStarted: started });
