// Requests that change what is learned. Every failure becomes a Problem.

import { Problem, request, stream } from "./api.js";

const MOST_IMAGES = 16; // in one request
const MOST_BYTES = 16 * 1024 * 1024;

/** Tell the true verdict of an answer: "good" or "defect". */
export function sendFeedback(id, verdict, task) {
  return request(`predictions/${encodeURIComponent(id)}/feedback`, asJson("POST", { verdict, ...(task && { task }) }));
}

/** The good images of a product that are kept, and how much room they take. */
export function fetchImages(task) {
  return request(`${pathOf(task)}/images`);
}

/** Send good images a few at a time; `onResults` is called with what became of each few, and with these files. */
export async function sendImages(task, files, onResults) {
  for (const group of groups(files)) {
    const form = new FormData();
    for (const file of group) form.append("file", file, file.name || "image");
    onResults(await request(`${pathOf(task)}/images`, { method: "POST", body: form }), group);
  }
}

function* groups(files) {
  let [group, size] = [[], 0];
  for (const file of files) {
    if (group.length && (group.length === MOST_IMAGES || size + file.size > MOST_BYTES)) {
      yield group;
      [group, size] = [[], 0];
    }
    group.push(file);
    size += file.size;
  }
  if (group.length) yield group;
}

/** Delete all images that were sent for a product. */
export function deleteImages(task) {
  return request(`${pathOf(task)}/images`, { method: "DELETE" });
}

/** Start a job that learns a product. */
export function startJob(task) {
  return request(`${pathOf(task)}:train`, { method: "POST" });
}

/** The jobs, newest first. */
export async function fetchJobs() {
  return (await request("jobs")).jobs;
}

export function cancelJob(id) {
  return request(`jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/** Call `onJob` with a job at every change; resolves at its end, or when the connection ends. */
export async function followJob(id, onJob, signal) {
  let text = "";
  for await (const piece of stream(`jobs/${encodeURIComponent(id)}/events`, signal)) {
    const events = (text + piece).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) onJob(JSON.parse(data.slice("data: ".length)));
    }
  }
}

/** The scores of the good images that calibrate a product, as a histogram. */
export function fetchScores(task) {
  return request(`${pathOf(task)}/scores`);
}

export function renameProduct(task, name) {
  return request(pathOf(task), asJson("PATCH", { name }));
}

export function removeProduct(task) {
  return request(pathOf(task), { method: "DELETE" });
}

function pathOf(task) {
  return `tasks/${encodeURIComponent(task)}`;
}

function asJson(method, value) {
  return { method, body: JSON.stringify(value), contentType: "application/json" };
}

/** The words of an error, whatever it is. */
export function wordsOf(error) {
  return error instanceof Problem ? error.detail : String(error);
}
