/** The analysis page: one analysis is open, and those before it are listed. Its id is in the page's address. */

import { FileForm } from "./file.js";
import { announce, find, inWords, showFailure } from "./page.js";
import { Analyses } from "./analyses.js";
import { AnalysisView } from "./analysis.js";

const { client: CLIENT, start: START, runs: RUNS, feed: FEED } = document.body.dataset;
const { followJob, job, watch } = await import(CLIENT);

const view = new AnalysisView(find("#work"));
const analyses = new Analyses(find("#earlier"), RUNS);
const form = new FileForm(send);
let open = null; // the job that the page shows

function send(file) {
  form.busy = true;
  form.refuse("");
  announce(`Sending ${file.name}.`);
  const onState = (state) => state === "following" && taken(sent, file.name);
  const sent = job(START, { file }, { ...callbacks(() => sent), onState });
  sent.done.catch(() => {}).finally(() => (form.busy = false));
  show(sent, file.name);
}

/** The server has the file: from here on the analysis can be left, and found again. */
function taken(sent, name) {
  form.busy = false;
  analyses.keep(sent.id, name);
  if (open === sent && location.hash.slice(1) !== sent.id) history.pushState(null, "", `#${sent.id}`);
  analyses.refresh();
}

/** Show the analysis that the address names; none without a name. */
function follow() {
  const id = location.hash.slice(1);
  if (id && open?.id === id) return;
  open = null;
  find("#work").hidden = true;
  analyses.mark();
  if (!id) return;
  const followed = followJob(`${RUNS}/${encodeURIComponent(id)}`, callbacks(() => followed));
  show(followed, analyses.name(id) ?? "Analysis");
}

async function show(started, name) {
  open = started;
  view.begin(name);
  try {
    const end = await started.done;
    if (open === started) view.end(end);
  } catch (error) {
    if (open !== started) return;
    if (started.id) view.fail(inWords(error));
    else refuse(inWords(error));
  } finally {
    analyses.refresh();
  }
}

/** The file was not taken: there is no analysis. */
function refuse(text) {
  open = null;
  find("#work").hidden = true;
  form.refuse(text);
}

/** What a job tells, as long as the page shows it. */
function callbacks(shown) {
  const ifOpen = (tell) => (...told) => shown() === open && tell(...told);
  return {
    onUpload: ifOpen((sent, all) => view.doing("Sending the file", sent / all)),
    onStatus: ifOpen((status) => status === "queued" && view.doing("Waiting for its turn")),
    onProgress: ifOpen((fraction, message) => view.doing(message, fraction)),
    onRestart: ifOpen(() => view.doing("Starting again")),
    onData: ifOpen(({ document: name }) => name && (view.title = name)),
  };
}

async function stop() {
  find("#stop").disabled = true;
  try {
    await open.stop();
  } catch (error) {
    showFailure(find("#work .failure"), `It could not be stopped. ${error.message}`);
  }
  find("#stop").disabled = false;
}

find("#stop").addEventListener("click", stop);
window.addEventListener("popstate", follow); // which a change of the address's end is, too
watch(FEED, { onRuns: () => analyses.refresh(), onStarted: () => analyses.refresh(), onEnded: () => analyses.refresh() });
follow();
await analyses.refresh();
