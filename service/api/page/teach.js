// The view in which a product is taught: good images go to the service, and a job learns from them.

import { JobsView } from "./jobs.js";
import { paint } from "./strip.js";
import { deleteImages, fetchImages, sendImages, startJob, wordsOf } from "./teaching-api.js";
import { byId, element } from "./view.js";
import { currentView, viewDetail } from "./views.js";

const ADVISED = 30; // images; 100 are much better
const MOST_SHOWN = 60; // thumbnails
const KNOWN_AFTER_MS = 400; // after the last letter of a name

let kept = 0; // good images of the product that the service has
let given = 0; // those of them that feedback gave
let sending = 0; // files on their way
let asked = ""; // the product whose images were asked for
let timer;
let jobs;

/** `onLearned` is called when a job has learned a product; `onInspect` leads to the view where images are inspected. */
export function startTeaching(onLearned, onInspect) {
  jobs = new JobsView(byId("jobs"), onLearned, onInspect);
  byId("taught-name").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(lookUp, KNOWN_AFTER_MS);
    arrange();
  });
  byId("good").addEventListener("change", () => {
    teachFiles([...byId("good").files]);
    byId("good").value = "";
  });
  byId("choose-good").addEventListener("click", () => byId("good").click());
  byId("learn").addEventListener("click", learn);
  byId("forget").addEventListener("click", forget);
  arrange();
}

/** The view is shown: with the product that the address names, and the jobs as they are. */
export function showTeaching() {
  if (viewDetail()) byId("taught-name").value = viewDetail();
  lookUp();
  jobs.refresh();
}

/** Offer the names of learned products. */
export function offerNames({ tasks }) {
  byId("known-names").replaceChildren(...tasks.map(({ name }) => element("option", { value: name })));
}

/** Send good images of the product that is named. */
export async function teachFiles(files) {
  const task = name();
  if (!files.length) return;
  if (!task) {
    tell("Name the product first, then add its images.");
    byId("taught-name").focus();
    return;
  }
  tell("");
  sending += files.length;
  arrange();
  let left = files.length;
  try {
    await sendImages(task, files, (response, sent) => {
      kept = response.images;
      left -= sent.length;
      sending -= sent.length;
      showResults(response.results, sent);
      arrange();
    });
  } catch (error) {
    tell(wordsOf(error));
  }
  sending -= left; // those that were not sent
  await countImages();
}

function showResults(results, files) {
  const byName = new Map(files.map((file) => [file.name, file]));
  for (const { file, error, duplicate } of results) {
    if (error) byId("refused").append(element("li", {}, element("strong", {}, file), ` ${error.detail}`));
    else if (!duplicate && byName.has(file) && byId("mosaic").childElementCount < MOST_SHOWN) {
      const canvas = element("canvas", { width: 0, height: 0, "aria-hidden": "true" });
      byId("mosaic").append(canvas);
      paint(canvas, byName.get(file));
    }
  }
  byId("refused-block").hidden = !byId("refused").childElementCount;
}

// Another product may be named now.
async function lookUp() {
  if (name() === asked) return;
  asked = name();
  byId("mosaic").replaceChildren();
  byId("refused").replaceChildren();
  byId("refused-block").hidden = true;
  await countImages();
}

// How many images of the product the service has.
async function countImages() {
  const task = name();
  try {
    const { images } = task ? await fetchImages(task) : { images: [] };
    if (task !== name()) return; // another name was typed meanwhile
    kept = images.length;
    given = images.filter(({ source }) => source === "feedback").length;
  } catch (error) {
    kept = 0;
    tell(wordsOf(error));
  }
  arrange();
}

async function learn() {
  tell("");
  try {
    await jobs.follow(await startJob(name()));
  } catch (error) {
    tell(wordsOf(error));
  }
}

async function forget() {
  try {
    await deleteImages(name());
    asked = ""; // so that what was shown of them goes
    await lookUp();
  } catch (error) {
    tell(wordsOf(error));
  }
}

function name() {
  return byId("taught-name").value.trim();
}

function tell(words) {
  byId("teach-problem").textContent = words;
}

function arrange() {
  const task = name();
  byId("learn").disabled = !task || !kept || sending > 0;
  byId("learn").textContent = task && kept ? `Learn ${task} from ${count(kept)}` : "Learn";
  byId("forget").hidden = !task || kept <= given;
  byId("kept").textContent = sending ? `Sending ${count(sending)}…` : keptWords(task);
  byId("sending").hidden = !sending;
}

function keptWords(task) {
  if (!task || !kept) return `Good parts only: ${ADVISED} images are a start, 100 are much better.`;
  const feedback = given ? `, ${given} of them from feedback` : "";
  const more = kept < ADVISED ? ` Some ${ADVISED} are a start.` : "";
  return `${count(kept)} of ${task}${feedback}.${more}`;
}

function count(images) {
  return `${images.toLocaleString("en")} ${images === 1 ? "image" : "images"}`;
}

/** Whether files that are dropped or pasted belong to this view. */
export function isTeaching() {
  return currentView() === "teach";
}
