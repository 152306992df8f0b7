// The jobs that learn products, each followed by its events.

import { histogramView } from "./histogram.js";
import { cancelJob, fetchJobs, fetchScores, followJob, wordsOf } from "./teaching-api.js";
import { element, number, percent } from "./view.js";

const MOST_SHOWN = 5;
const RECONNECT_MS = 2000;
const ENDED = { done: "Learned", failed: "Failed", cancelled: "Cancelled" };

/** Shows jobs in `place`. */
export class JobsView {
  #place;
  #onLearned;
  #onInspect;
  #jobs = new Map(); // by id: the card, and whether it is followed

  constructor(place, onLearned, onInspect) {
    this.#place = place;
    this.#onLearned = onLearned;
    this.#onInspect = onInspect;
  }

  /** Show the newest jobs. */
  async refresh() {
    let jobs;
    try {
      jobs = await fetchJobs();
    } catch (error) {
      this.#place.replaceChildren(element("p", { class: "quiet" }, wordsOf(error)));
      return;
    }
    const shown = jobs.slice(0, MOST_SHOWN);
    if (!shown.length) this.#place.replaceChildren(element("p", { class: "quiet" }, "Nothing is being learned."));
    for (const job of shown.reverse()) this.follow(job, job !== shown[shown.length - 1]);
  }

  /** Show a job, and follow it until its end; without its scores if `isOld`. */
  async follow(job, isOld = false) {
    let card = this.#jobs.get(job.id);
    if (!card) {
      if (!this.#jobs.size) this.#place.replaceChildren();
      card = { view: element("article", { class: "job", "aria-label": `Job for ${job.task}` }), isFollowed: false };
      this.#jobs.set(job.id, card);
      this.#place.prepend(card.view);
      for (const surplus of [...this.#place.children].slice(MOST_SHOWN)) surplus.remove();
    }
    this.#show(card, job, isOld);
    if (job.state in ENDED || card.isFollowed) return;
    card.isFollowed = true;
    let last = job;
    while (!(last.state in ENDED)) {
      try {
        await followJob(job.id, (changed) => {
          last = changed;
          this.#show(card, changed);
        });
      } catch (error) {
        if (error.status === 404) return;
      }
      if (!(last.state in ENDED)) await new Promise((resolve) => { setTimeout(resolve, RECONNECT_MS); });
    }
    if (last.state === "done") this.#onLearned();
  }

  // What changes with the progress is updated; all else is made anew only when the state changes, so that a button
  // keeps the keyboard.
  #show(card, job, isOld = false) {
    const state = `${job.state} ${job.warnings.length}`;
    if (card.state !== state) {
      card.state = state;
      card.words = element("span", { class: "quiet" });
      card.progress = progressView(job);
      card.view.dataset.state = job.state;
      card.view.replaceChildren(element("h3", {}, job.task, " · ", card.words), ...this.#contentOf(card, job, isOld));
    }
    card.words.textContent = words(job);
    updateProgress(card.progress, job);
  }

  #contentOf(card, job, isOld) {
    if (!(job.state in ENDED)) return [card.progress, this.#cancelView(job)];
    const detail = element("p", job.state === "failed" ? {} : { class: "quiet" }, job.detail);
    if (isOld || job.state === "cancelled") return job.state === "failed" ? [detail] : [];
    const notes = job.warnings.map((warning) => element("p", { class: "quiet" }, `Note: ${warning}`));
    return [detail, ...notes, ...(job.state === "done" ? [this.#resultView(job)] : [])];
  }

  #cancelView(job) {
    const button = element("button", { type: "button", class: "link" }, "Cancel");
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await cancelJob(job.id);
      } catch (error) {
        button.replaceWith(element("span", { class: "quiet" }, wordsOf(error)));
      }
    });
    return button;
  }

  // The first results: how good images score, and the way to inspect one.
  #resultView(job) {
    const place = element("div", { class: "first-results" });
    fetchScores(job.task).then((scores) => {
      place.replaceChildren(histogramView(scores), element("button", {
        type: "button", class: "button", onclick: () => this.#onInspect(job.task),
      }, `Inspect images of ${job.task}`));
    }, () => {}); // it may have been removed since
    return place;
  }
}

function words({ state, images, progress, attempts, detail }) {
  if (state in ENDED) return `${ENDED[state]} from ${images} images`;
  if (state === "waiting") return detail || "Waiting";
  if (!progress) return attempts > 1 ? "Continuing…" : "Starting…";
  return phaseWords(progress);
}

function phaseWords({ phase, epoch, epochs, loss }) {
  if (/: /.test(phase)) return phase.replace(/^.*: /, "");
  const at = epoch === null ? "" : `epoch ${epoch} of ${epochs}`;
  return [at || "fitting", loss === null ? "" : `loss ${number(loss)}`].filter(Boolean).join(", ");
}

function progressView({ task }) {
  return element("div", { class: "job-progress" },
    element("progress", { max: 1, "aria-label": `Progress of learning ${task}` }), element("span", { class: "quiet figure" }));
}

function updateProgress(view, { state, progress }) {
  const [bar, text] = view.children;
  const { fraction, seconds_left: left } = progress ?? { fraction: null, seconds_left: null };
  view.hidden = state === "waiting";
  if (fraction === null) bar.removeAttribute("value");
  else bar.value = fraction;
  text.textContent = left === null ? "" : `${percent(fraction)}, ${timeLeft(left)}`;
}

function timeLeft(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s left`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min left`;
  return `${(seconds / 3600).toFixed(1)} h left`;
}
