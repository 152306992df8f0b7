// The behaviour of the page: takes an image, sends it to the service, and shows the result.

import { Problem, curlLine, fetchReadiness, fetchTasks, predict } from "./api.js";
import { paintLegend, paintMap, readMap, scaleOf } from "./heatmap.js";
import {
  busyView, element, problemView, productsView, rateOptions, regionBoxes, resultSentence, resultView, unknownView,
} from "./view.js";

const READINESS_POLL_SECONDS = 2;
const CHANGE_POLL_SECONDS = 10; // products may come and go while the page is open
const MAX_RETRIES = 4; // for one image while the service is busy; then a button is shown

const byId = (id) => document.getElementById(id);
const [stage, findings, preview, overlay, product, rate, opacity] =
  ["stage", "findings", "preview", "overlay", "product", "rate", "opacity"].map(byId);

let state = "empty"; // then busy, good, defect, unknown or problem
let current = null; // the current image: a File, or null before the first one
let canPreview = false; // whether the browser can display it
let reconnection; // timer of the next look at the service
let listed = ""; // the digest of the checkpoint whose products are listed
let request = new AbortController(); // aborts the request in flight when another image is chosen

// `keep` leaves the previous result of the same image visible until the new one arrives.
async function examine({ keep = false } = {}) {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  const file = current;
  const choice = chosen();
  if (keep && hasResult()) findings.setAttribute("aria-busy", "true");
  else show("busy", busyView(file.name));
  announce("Inspecting the image.");
  try {
    const started = performance.now();
    const result = await predictWithRetries(file, choice, signal);
    showResult(result, file, performance.now() - started);
    if (result.checkpoint.digest !== listed) connect();
  } catch (error) {
    if (!signal.aborted) showProblem(error);
  }
}

async function predictWithRetries(file, choice, signal) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await predict(file, choice, signal);
    } catch (error) {
      if (!(error instanceof Problem) || !error.isTemporary || attempt > MAX_RETRIES) throw error;
      const note = `Retrying in ${error.retryAfter} s (${attempt} of ${MAX_RETRIES}).`;
      show("busy", problemView(error, () => examine(), note));
      await pause(error.retryAfter, signal);
      show("busy", busyView(file.name));
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

function showResult(result, file, milliseconds) {
  setProportions(result.image);
  announce(resultSentence(result));
  byId("regions").replaceChildren(...regionBoxes(result));
  if (result.verdict === "unknown_product") {
    show("unknown", unknownView(result, file.name, milliseconds));
    return;
  }
  const map = readMap(result.anomaly_map);
  const scale = scaleOf(result, map);
  paintMap(overlay, map, scale, result.image);
  overlay.setAttribute("aria-label", result.is_anomalous ? "Anomaly map; the defect is coloured" : "Anomaly map");
  show(result.is_anomalous ? "defect" : "good", resultView(result, scale, file.name, milliseconds));
}

function showProblem(error) {
  const problem = error instanceof Problem ? error : new Problem("The result could not be shown", String(error));
  show("problem", problemView(problem, problem.isRetryable ? () => examine() : undefined));
  announce(""); // the alert is announced by itself
  if (problem.isUnreachable || problem.status === 404) connect();
}

function show(newState, content) {
  state = newState;
  findings.hidden = false;
  findings.setAttribute("aria-busy", String(state === "busy"));
  findings.replaceChildren(...content);
  arrange();
}

function hasResult() {
  return state === "good" || state === "defect" || state === "unknown";
}

function chosen() {
  return { task: product.value, rate: rate.value };
}

// Show the elements of the stage that belong to the current state.
function arrange() {
  const hasMap = state === "good" || state === "defect";
  const isInviting = state === "empty" || (state === "problem" && !canPreview);
  stage.dataset.state = isInviting ? "empty" : state;
  byId("invitation").hidden = !isInviting;
  byId("actions").hidden = isInviting;
  byId("image").hidden = isInviting;
  byId("progress").hidden = state !== "busy";
  byId("map-tools").hidden = !hasMap;
  overlay.hidden = !hasMap;
  byId("regions").hidden = !hasMap || !byId("show-regions").checked;
  preview.hidden = !canPreview;
  byId("no-preview").hidden = canPreview || !hasResult();
}

function announce(sentence) {
  byId("announcement").textContent = sentence;
}

function take(file) {
  if (!file) return;
  current = file;
  canPreview = true; // until the browser reports an error
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `The image ${file.name}`;
  showCurlLine();
  examine();
}

function setProportions({ width, height }) {
  byId("image").style.setProperty("--proportions", width / height);
}

function takeFrom(transfer) {
  const file = [...transfer.files].find(({ type }) => type.startsWith("image/")) ?? transfer.files[0];
  if (file) return take(file);
  const advice = "Save the image to a file first, or copy the image itself instead of its address.";
  showProblem(new Problem("This is not an image file", advice));
  return undefined;
}

function showCurlLine() {
  byId("curl").textContent = curlLine(current?.name ?? "image.jpg", chosen());
}

async function copyCurlLine() {
  const button = byId("copy");
  const line = byId("curl");
  try {
    await navigator.clipboard.writeText(line.textContent);
  } catch { // the clipboard API is not permitted, or missing because the page came over plain HTTP
    getSelection().selectAllChildren(line);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  announce("The command was copied.");
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

function showService(state, text) {
  const service = byId("service");
  service.dataset.state = state;
  if (service.textContent !== text) service.textContent = text;
}

function listProducts(learned) {
  listed = learned.checkpoint.digest;
  showService("ready", learned.tasks.length ? "Ready" : "No products learned");
  byId("products").replaceChildren(...productsView(learned));
  const { task, rate: wanted } = chosen();
  const choices = learned.tasks.map(({ name }) => element("option", { value: name, selected: name === task }, name));
  product.replaceChildren(product.options[0], ...choices);
  if (learned.tasks.length) rate.replaceChildren(...rateOptions(learned.tasks[0].false_alarm_rate, wanted));
  showCurlLine(); // the chosen product may have gone
}

async function connect() {
  clearTimeout(reconnection);
  try {
    const { checkpoint } = await fetchReadiness();
    if (checkpoint.digest !== listed) listProducts(await fetchTasks());
    reconnection = setTimeout(connect, CHANGE_POLL_SECONDS * 1000);
  } catch (error) {
    listed = "";
    const isStarting = error instanceof Problem && error.status === 503;
    showService(isStarting ? "starting" : "lost", isStarting ? "Getting ready…" : "No connection");
    byId("products").replaceChildren(element("p", { class: "quiet" }, error.detail ?? String(error)));
    reconnection = setTimeout(connect, READINESS_POLL_SECONDS * 1000);
  }
}

function setOpacity() {
  overlay.style.opacity = opacity.value / 100;
  byId("opacity-value").textContent = `${opacity.value} %`;
}

function listenForImages() {
  for (const button of document.querySelectorAll("[data-opens]")) {
    button.addEventListener("click", () => byId(button.dataset.opens).click());
  }
  for (const input of [byId("file"), byId("camera")]) {
    input.addEventListener("change", () => {
      take(input.files[0]);
      input.value = ""; // so that the same file may be chosen again
    });
  }
  document.addEventListener("paste", (event) => takeFrom(event.clipboardData));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    stage.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) stage.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("dragging");
    takeFrom(event.dataTransfer);
  });
}

preview.addEventListener("load", () => setProportions({ width: preview.naturalWidth, height: preview.naturalHeight }));
preview.addEventListener("error", () => {
  canPreview = false;
  arrange();
});
product.addEventListener("change", () => {
  showCurlLine();
  if (current) examine();
});
rate.addEventListener("change", () => {
  showCurlLine();
  if (current) examine({ keep: true });
});
opacity.addEventListener("input", setOpacity);
byId("show-regions").addEventListener("change", arrange);
byId("copy").addEventListener("click", copyCurlLine);
listenForImages();
paintLegend(byId("legend"));
setOpacity();
showCurlLine();
connect();
