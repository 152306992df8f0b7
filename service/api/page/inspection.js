// The images given to the page, and their way to the service: in order, two at a time.

import { Problem, predict } from "./api.js";

export const KEPT = 50; // images on the page; folders are for the command line

const IN_FLIGHT = 2; // so that the service need not wait for the network
const MAX_RETRIES = 4; // for one image while the service is busy; then a button is shown

/** One image. `kind` is waiting, busy, good, defect, unknown or problem. */
class Item {
  constructor(file, choice) {
    this.file = file;
    this.choice = choice; // product and false-positive rate
    this.canPreview = true; // until the browser fails to display it
    this.kind = "waiting";
    this.result = null; // the response; kept while the image is scored again at another rate
    this.problem = null;
    this.note = "";
    this.milliseconds = 0;
    this.request = new AbortController();
  }

  get name() {
    return this.file.name;
  }

  get isPending() {
    return this.kind === "waiting" || this.kind === "busy";
  }
}

/** The images and which of them is shown. `onChange(item)` is called after every change of one, or of the selection. */
export class Inspection {
  items = [];
  current = null;
  #running = 0;
  #isPaused = false; // while the service cannot be reached
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** Take files, show the first, and return how many there was no room for. Finished images make room. */
  add(files, choice) {
    const room = KEPT - this.items.filter(({ isPending }) => isPending).length;
    const taken = files.slice(0, room).map((file) => new Item(file, choice));
    while (this.items.length + taken.length > KEPT) {
      this.items.splice(this.items.findIndex(({ isPending }) => !isPending), 1);
    }
    this.items.push(...taken);
    if (taken.length) this.select(taken[0]);
    this.resume();
    return files.length - taken.length;
  }

  /** Show an image. */
  select(item) {
    this.current = item;
    this.#onChange(item);
  }

  /** Show the next image (1) or the previous one (−1), if there is one. */
  step(direction) {
    const item = this.items[this.items.indexOf(this.current) + direction];
    if (item) this.select(item);
  }

  /** Send an image again. `keep` leaves its result visible until the new one arrives. */
  again(item, { choice = item.choice, keep = false } = {}) {
    item.request.abort();
    this.#set(item, { choice, kind: "waiting", problem: null, result: keep ? item.result : null });
    this.resume();
  }

  /** Forget all images. */
  clear() {
    for (const { request } of this.items) request.abort();
    this.items = [];
    this.select(null);
  }

  /** Go on after the service could not be reached. */
  resume() {
    this.#isPaused = false;
    this.#advance();
  }

  #set(item, changes) {
    Object.assign(item, changes);
    this.#onChange(item);
  }

  #advance() {
    while (this.#running < IN_FLIGHT && !this.#isPaused) {
      const first = this.current?.kind === "waiting" ? this.current : this.items.find(({ kind }) => kind === "waiting");
      if (!first) return;
      this.#running += 1;
      this.#inspect(first).finally(() => {
        this.#running -= 1;
        this.#advance();
      });
    }
  }

  async #inspect(item) {
    item.request = new AbortController();
    const { signal } = item.request;
    this.#set(item, { kind: "busy" });
    try {
      const started = performance.now();
      const result = await this.#predict(item, signal);
      if (!signal.aborted) this.#set(item, { kind: kindOf(result), result, milliseconds: performance.now() - started });
    } catch (error) {
      if (signal.aborted) return;
      const problem = error instanceof Problem ? error : new Problem("The result could not be shown", String(error));
      this.#isPaused = problem.isUnreachable;
      this.#set(item, { kind: "problem", problem, result: null });
    }
  }

  async #predict(item, signal) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await predict(item.file, item.choice, signal);
      } catch (error) {
        if (!(error instanceof Problem) || !error.isTemporary || attempt > MAX_RETRIES) throw error;
        const note = `Retrying in ${error.retryAfter} s (${attempt} of ${MAX_RETRIES}).`;
        this.#set(item, { problem: error, note });
        await pause(error.retryAfter, signal);
        this.#set(item, { problem: null });
      }
    }
  }
}

function kindOf({ verdict, is_anomalous: isAnomalous }) {
  if (verdict === "unknown_product") return "unknown";
  return isAnomalous ? "defect" : "good";
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}
