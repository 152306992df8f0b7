// The behaviour of the page: takes images, has them inspected, and shows the results.

import { Problem, curlLine, fetchReadiness, fetchSample, fetchSamples, fetchTasks, setKey } from "./api.js";
import { drawOn, ignoredView } from "./area.js";
import { feedbackView } from "./feedback.js";
import { paintLegend, paintMap, readMap, scaleOf, valueAt } from "./heatmap.js";
import { Inspection, KEPT } from "./inspection.js";
import { saveOverlay, saveResponse } from "./save.js";
import { Strip } from "./strip.js";
import { listProducts as showProducts, openProduct, startProducts } from "./products.js";
import { isTeaching, offerNames, showTeaching, startTeaching, teachFiles } from "./teach.js";
import {
  busyView, byId, element, keyView, number, problemView, productsView, rateOptions, regionBoxes, resultSentence, resultView,
  samplesView, summaryView, unknownView,
} from "./view.js";
import { addressOf, currentView, followAddress, offer } from "./views.js";

const READINESS_POLL_SECONDS = 2;
const CHANGE_POLL_SECONDS = 10; // products may come and go while the page is open

const [stage, image, findings, preview, overlay, product, rate, opacity] =
  ["stage", "image", "findings", "preview", "overlay", "product", "rate", "opacity"].map(byId);

const inspection = new Inspection(changed);
const strip = new Strip(byId("thumbnails"), byId("strip-summary"), select);

let notice = null; // a Problem that concerns no image
let previewed = null; // the image in `preview`
let drawn = null; // the result on `overlay`, with its map and scale
let announced = null; // the last result or state that was announced
let reconnection; // timer of the next look at the service
let listed = ""; // the digest of the checkpoint whose products are listed
let offers = {}; // whether the service takes feedback, and is taught

// An image changed, or another one was selected.
function changed(item) {
  strip.show(inspection.items, inspection.current);
  byId("strip").hidden = inspection.items.length < 2;
  if (item && mustReconnect(item)) connect();
  if (item === inspection.current) show();
}

// Whether the list of products, or the connection, is out of date.
function mustReconnect({ kind, problem, result }) {
  if (kind === "problem") return problem.isUnreachable || problem.status === 404;
  return kind !== "busy" && result !== null && result.checkpoint.digest !== listed;
}

// Show the current image, or a notice.
function show() {
  const item = inspection.current;
  if (item && item !== previewed) display(item);
  if (item?.result) draw(item);
  findings.hidden = !item && !notice;
  findings.setAttribute("aria-busy", String(!notice && Boolean(item?.isPending)));
  findings.replaceChildren(...content(item));
  byId("verdict-bar").replaceChildren(...(hasResult(item) ? summaryView(item.result) : []));
  announceState(item);
  arrange(item);
}

function hasResult(item) {
  return Boolean(item?.result) && !notice;
}

function content(item) {
  if (notice) return problemView(notice);
  if (!item) return [];
  const again = () => inspection.again(item);
  if (item.result?.verdict === "unknown_product") {
    return unknownView(item.result, item.name, item.milliseconds, (task) => choose({ ...item.choice, task }));
  }
  if (item.result) {
    return resultView(item.result, drawn.scale, item.name, item.milliseconds, {
      "Save overlay": () => saveOverlay(item, preview, overlay), "Save JSON": () => saveResponse(item),
      "Inspected area": () => showArea(item),
    }).concat(offers.feedback && item.result.id ? [feedbackView(item)] : []);
  }
  if (item.problem) {
    const canRetry = item.isPending || item.problem.isRetryable;
    return problemView(item.problem, canRetry ? again : undefined, item.isPending ? item.note : undefined);
  }
  return busyView(item.name, item.kind === "waiting");
}

// Draw what the product inspects, on this image.
function showArea({ file, result }) {
  drawOn(result.task.name, file);
  openProduct(result.task.name);
  location.hash = addressOf("products");
}

// Put the file itself on the stage, and its choices into the form.
function display(item) {
  previewed = item;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(item.file);
  preview.alt = `The image ${item.name}`;
  product.value = item.choice.task;
  rate.value = item.choice.rate;
  showCurlLine();
}

// Paint the map and the regions, unless they are there already.
function draw({ result }) {
  if (drawn?.result === result) return;
  drawn = { result };
  setProportions(result.image);
  byId("ignored").replaceChildren(...ignoredView(result.inspected));
  byId("regions").replaceChildren(...regionBoxes(result));
  if (!result.anomaly_map) return;
  drawn.map = readMap(result.anomaly_map, result.inspected);
  drawn.scale = scaleOf(result, drawn.map);
  paintMap(overlay, drawn.map, drawn.scale, result.image);
  overlay.setAttribute("aria-label", result.is_anomalous ? "Anomaly map; the defect is coloured" : "Anomaly map");
}

// Show the elements of the stage that belong to the current state.
function arrange(item) {
  const canPreview = Boolean(item?.canPreview);
  const isInviting = !item || (!canPreview && Boolean(notice || (item.problem && !item.isPending)));
  const hasMap = hasResult(item) && Boolean(item.result.anomaly_map);
  const hadFocus = byId("invitation").contains(document.activeElement);
  stage.dataset.state = isInviting ? "empty" : "full";
  byId("invitation").hidden = !isInviting;
  byId("actions").hidden = isInviting;
  image.hidden = isInviting;
  byId("progress").hidden = Boolean(notice) || !item?.isPending;
  byId("map-tools").hidden = !hasMap;
  byId("verdict-bar").hidden = !hasResult(item);
  overlay.hidden = !hasMap;
  byId("ignored").hidden = !hasMap;
  byId("regions").hidden = !hasMap || !byId("show-regions").checked;
  preview.hidden = !canPreview;
  byId("no-preview").hidden = canPreview || !hasResult(item);
  byId("probe").hidden = true;
  if (!isInviting && hadFocus) byId("open").focus({ preventScroll: true }); // what had the focus is hidden
}

function announceState(item) {
  const state = item?.isPending ? "busy" : item?.result ?? null;
  if (state === announced) return;
  announced = state;
  if (state === "busy") announce("Inspecting the image.");
  else announce(state ? resultSentence(state) : ""); // a problem is announced by itself
}

function announce(sentence) {
  byId("announcement").textContent = sentence;
}

function setProportions({ width, height }) {
  image.style.setProperty("--proportions", width / height);
}

function take(files) {
  if (!files.length) return;
  notice = null;
  const left = inspection.add(files, chosen());
  if (left) {
    tell("Some files were left out", `This page holds ${KEPT} images, and ${left} of ${files.length} files found no `
      + "room. For whole folders use moleflow predict CHECKPOINT FOLDER --output scores.csv.");
  }
}

function takeFrom(transfer) {
  const files = [...transfer.files];
  if (isTeaching()) {
    teachFiles(files);
    return;
  }
  if (currentView() !== "inspect") location.hash = addressOf("inspect");
  const images = files.filter(({ type }) => type.startsWith("image/"));
  if (files.length) take(images.length ? images : files);
  else {
    tell("This is not an image file",
      "Save the image to a file first, or copy the image itself instead of its address.");
  }
}

function tell(title, detail) {
  notice = new Problem(title, detail);
  show();
}

function select(item) {
  notice = null;
  inspection.select(item);
}

function chosen() {
  return { task: product.value, rate: rate.value };
}

// Apply a product and a rate to the current image and those that follow.
function choose(choice, { keep = false } = {}) {
  product.value = choice.task;
  rate.value = choice.rate;
  showCurlLine();
  notice = null;
  if (inspection.current) inspection.again(inspection.current, { choice, keep });
}

function showCurlLine() {
  byId("curl").textContent = curlLine(inspection.current?.name ?? "image.jpg", chosen());
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
  showProducts(learned, Boolean(offers.teaching));
  offerNames(learned);
}

// Look at the service at once: something has changed there.
function lookAgain() {
  listed = "";
  connect();
}

async function connect() {
  clearTimeout(reconnection);
  try {
    const { checkpoint, feedback, teaching } = await fetchReadiness();
    offers = { feedback, teaching };
    offer("teach", teaching);
    if (checkpoint.digest !== listed) listProducts(await fetchTasks());
    inspection.resume();
    reconnection = setTimeout(connect, CHANGE_POLL_SECONDS * 1000);
  } catch (error) {
    listed = "";
    if (error.needsKey) {
      showService("lost", "API key needed");
      byId("products").replaceChildren(keyView((key) => {
        setKey(key);
        connect();
      }));
      return;
    }
    const isStarting = error instanceof Problem && error.status === 503;
    showService(isStarting ? "starting" : "lost", isStarting ? "Getting ready…" : "No connection");
    byId("products").replaceChildren(element("p", { class: "quiet" }, error.detail ?? String(error)));
    reconnection = setTimeout(connect, READINESS_POLL_SECONDS * 1000);
  }
}

// Images that whoever started the service offers to try.
async function offerSamples() {
  const { samples } = await fetchSamples().catch(() => ({ samples: [] }));
  byId("samples").hidden = !samples.length;
  byId("sample-list").replaceChildren(...samplesView(samples, async (name) => {
    try {
      take([await fetchSample(name)]);
    } catch (error) {
      tell(error.title ?? "The sample could not be read", error.detail ?? String(error));
    }
  }));
}

function setOpacity() {
  overlay.style.opacity = opacity.value / 100;
  byId("opacity-value").textContent = `${opacity.value} %`;
}

// The value of the map under the pointer.
function probe({ clientX, clientY }) {
  const { left, top, width, height } = overlay.getBoundingClientRect();
  const [x, y] = [(clientX - left) / width, (clientY - top) / height];
  const isInside = !overlay.hidden && drawn?.map && x >= 0 && x < 1 && y >= 0 && y < 1;
  byId("probe").hidden = !isInside;
  if (!isInside) return;
  const { width: across, height: down } = drawn.result.image;
  const [column, row] = [Math.floor(x * across), Math.floor(y * down)];
  byId("probe").textContent = `${number(valueAt(drawn.map, x, y))} at ${column}, ${row}`;
}

// The image without its map, as long as the pointer holds it.
function compare(isHeld) {
  image.classList.toggle("bare", isHeld);
}

function listenForImages() {
  for (const button of document.querySelectorAll("[data-opens]")) {
    button.addEventListener("click", () => byId(button.dataset.opens).click());
  }
  for (const input of [byId("file"), byId("camera")]) {
    input.addEventListener("change", () => {
      take([...input.files]);
      input.value = ""; // so that the same file may be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    if (!event.target.closest?.("input")) takeFrom(event.clipboardData); // else it is text for a field
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    dropPlace().classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) dropPlace().classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dropPlace().classList.remove("dragging");
    takeFrom(event.dataTransfer);
  });
}

function dropPlace() {
  return isTeaching() ? byId("teach-stage") : stage;
}

function listenForKeys() {
  document.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const hasOther = event.altKey || event.ctrlKey || event.metaKey;
    const isTaken = event.target.closest("input, select, pre, textarea");
    if (!direction || hasOther || isTaken || !inspection.current || currentView() !== "inspect") return;
    event.preventDefault();
    notice = null;
    inspection.step(direction);
    if (strip.hasFocus) strip.focus(inspection.current);
  });
}

preview.addEventListener("load", () => setProportions({ width: preview.naturalWidth, height: preview.naturalHeight }));
preview.addEventListener("error", () => {
  if (!previewed) return;
  previewed.canPreview = false;
  arrange(inspection.current);
});
product.addEventListener("change", () => choose(chosen()));
rate.addEventListener("change", () => choose(chosen(), { keep: true }));
opacity.addEventListener("input", setOpacity);
byId("show-regions").addEventListener("change", () => arrange(inspection.current));
byId("copy").addEventListener("click", copyCurlLine);
byId("clear").addEventListener("click", () => inspection.clear());
stage.addEventListener("pointermove", probe);
stage.addEventListener("pointerleave", () => { byId("probe").hidden = true; });
image.addEventListener("pointerdown", () => compare(true));
for (const end of ["pointerup", "pointercancel", "pointerleave"]) image.addEventListener(end, () => compare(false));
listenForImages();
listenForKeys();
paintLegend(byId("legend"));
setOpacity();
showCurlLine();
startProducts((learned) => {
  listProducts(learned);
  announce("The products have changed.");
});
startTeaching(lookAgain, (task) => {
  product.value = task;
  location.hash = addressOf("inspect");
});
followAddress((name) => { if (name === "teach") showTeaching(); });
connect();
offerSamples();
