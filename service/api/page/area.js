// The inspected area of a product: hatched on images, and drawn in an editor.

import { Problem, request } from "./api.js";
import { element, percent } from "./view.js";

const SVG = "http://www.w3.org/2000/svg";
const CLOSE_PIXELS = 12; // a click so near to the first corner closes the polygon
const STEP = 0.01; // of the image, for the arrow keys; five times as far with Shift
const DIGITS = 4; // of a coordinate: a tenth of a pixel in an image of 1,000
const KINDS = { ignore: "Ignore", inspect: "Inspect only" };

const images = new Map(); // by product: the file that its area is drawn on
let hatches = 0; // patterns so far; each needs a name of its own

/** What is not inspected, hatched; covers an image. `patches` are rows of 1 and 0, or null. */
export function ignoredView(patches) {
  if (!patches) return [];
  const view = svg("svg", { viewBox: `0 0 ${patches[0].length} ${patches.length}`, preserveAspectRatio: "none" });
  const runs = patches.flatMap((row, y) => [...row.matchAll(/0+/g)].map(({ index, 0: run }) =>
    `M${index} ${y}h${run.length}v1h-${run.length}z`));
  hatches += 1;
  const pattern = svg("pattern", { id: `hatch-${hatches}`, width: 1, height: 1, patternUnits: "userSpaceOnUse" });
  pattern.append(svg("path", { d: "M-.1 .1L.1 -.1M0 1L1 0M.9 1.1L1.1 .9", class: "hatch" }));
  view.append(pattern, svg("path", { d: runs.join(""), class: "veil" }),
    svg("path", { d: runs.join(""), fill: `url(#hatch-${hatches})` }));
  view.setAttribute("aria-hidden", "true");
  return [view];
}

/** Darken what is not inspected on a canvas of an image, as the service's overlays do. */
export function dimIgnored(canvas, patches) {
  const context = canvas.getContext("2d");
  const [width, height] = [canvas.width / patches[0].length, canvas.height / patches.length];
  context.globalAlpha = 0.5;
  context.fillStyle = "black";
  patches.forEach((row, y) => {
    for (const { index, 0: run } of row.matchAll(/0+/g)) context.fillRect(index * width, y * height, run.length * width, height);
  });
}

/** Draw the area of a product on this image from now on. */
export function drawOn(name, file) {
  images.set(name, file);
}

/** The area of a product, with its editor; `onSaved` is called with the products after a change. */
export function areaView(task, onSaved) {
  return new Editor(task, onSaved).view;
}

class Editor {
  #task;
  #onSaved;
  #kind = "ignore";
  #shapes; // { kind, points }
  #points = []; // of the polygon that is being drawn
  #cursor = [0.5, 0.5]; // moved by the arrow keys
  #problem = element("p", { class: "area-problem", "aria-live": "assertive" });
  #list = element("ul", { class: "outlines" });
  #canvas = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", class: "drawing" });
  #image = element("img", { alt: "" });
  #figure = element("figure", { class: "drawing-board", tabIndex: 0, role: "application", hidden: true,
    "aria-label": "Drawing: arrow keys move, space sets a corner, enter closes the polygon, backspace takes a corner back" });
  #hint = element("p", { class: "quiet", hidden: true }, "Click the corners, and the first one again to close the polygon.");
  #save = element("button", { type: "button", class: "button primary" }, "Save area");

  constructor(task, onSaved) {
    this.#task = task;
    this.#onSaved = onSaved;
    const { area } = task;
    this.#shapes = Object.keys(KINDS).flatMap((kind) => (area?.[kind] ?? []).map((points) => ({ kind, points })));
    this.view = element("section", { class: "area", "aria-label": `Inspected area of ${task.name}` },
      element("h3", {}, "Inspected area"), element("p", { class: "quiet" }, areaWords(task)),
      this.#choices(), this.#figure, this.#hint, this.#list, this.#actions(), this.#problem);
    this.#listen();
    this.#show();
    if (images.has(task.name)) this.#open(images.get(task.name));
  }

  #choices() {
    const file = element("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Image to draw on" });
    file.addEventListener("change", () => { if (file.files.length) this.#open(file.files[0]); });
    const choose = element("button", { type: "button", class: "button" }, "Draw on an image…");
    choose.addEventListener("click", () => file.click());
    const kinds = Object.entries(KINDS).map(([kind, words]) => {
      const input = element("input", { type: "radio", name: `kind-${this.#task.index}`, value: kind, checked: kind === this.#kind });
      input.addEventListener("change", () => {
        this.#kind = kind;
        this.#show();
      });
      return element("label", {}, input, ` ${words}`);
    });
    return element("div", { class: "area-choices" }, choose, file, element("span", { class: "kinds" }, ...kinds));
  }

  #actions() {
    const clear = element("button", { type: "button", class: "button", hidden: !this.#task.area }, "Clear area");
    clear.addEventListener("click", () => this.#attempt({ method: "DELETE" }));
    this.#save.addEventListener("click", () => {
      this.#close();
      const outlines = { inspect: [], ignore: [] };
      for (const { kind, points } of this.#shapes) outlines[kind].push(points);
      this.#attempt({ method: "PUT", body: JSON.stringify(outlines), contentType: "application/json" });
    });
    return element("div", { class: "product-actions" }, this.#save, clear);
  }

  async #attempt(options) {
    this.#problem.textContent = "";
    this.#save.disabled = true;
    try {
      this.#onSaved(await request(`tasks/${encodeURIComponent(this.#task.name)}/area`, options));
    } catch (error) {
      this.#problem.textContent = error instanceof Problem ? error.detail : String(error);
    }
    this.#save.disabled = this.#shapes.length === 0;
  }

  #open(file) {
    images.set(this.#task.name, file);
    this.#image.addEventListener("load", () => URL.revokeObjectURL(this.#image.src), { once: true });
    this.#image.addEventListener("error", () => {
      this.#problem.textContent = "This browser cannot display that file; choose a PNG or JPEG image.";
    }, { once: true });
    this.#image.src = URL.createObjectURL(file);
    this.#figure.hidden = this.#hint.hidden = false;
    const { area, learned_area: learned } = this.#task;
    this.#figure.replaceChildren(this.#image, ...ignoredView((area ?? learned)?.patches), this.#canvas);
  }

  #listen() {
    this.#canvas.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // else the image is dragged
      this.#figure.focus({ preventScroll: true });
      const { left, top, width, height } = this.#canvas.getBoundingClientRect();
      const point = [rounded((event.clientX - left) / width), rounded((event.clientY - top) / height)];
      const [first] = this.#points;
      const isNear = first && Math.hypot((point[0] - first[0]) * width, (point[1] - first[1]) * height) < CLOSE_PIXELS;
      if (isNear && this.#points.length > 2) this.#close();
      else this.#add(point);
    });
    this.#figure.addEventListener("keydown", (event) => {
      const step = STEP * (event.shiftKey ? 5 : 1);
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      const actions = {
        " ": () => this.#add([...this.#cursor]),
        Enter: () => this.#close(),
        Backspace: () => { this.#points.pop(); },
        Escape: () => { this.#points = []; },
      };
      if (moves[event.key]) this.#cursor = this.#cursor.map((value, axis) => rounded(value + moves[event.key][axis]));
      else if (actions[event.key]) actions[event.key]();
      else return;
      event.preventDefault();
      event.stopPropagation(); // the arrow keys are no steps from image to image here
      this.#show();
    });
  }

  #add(point) {
    this.#points.push(point);
    this.#cursor = point;
    this.#show();
  }

  #close() {
    if (this.#points.length > 2) {
      this.#shapes.push({ kind: this.#kind, points: this.#points });
      this.#points = [];
    }
    this.#show();
  }

  #show() {
    const shapes = this.#shapes.map(({ kind, points }) => svg("polygon", { points: points.join(" "), class: kind }));
    const drawn = svg("polyline", { points: this.#points.join(" "), class: this.#kind });
    const [x, y] = this.#cursor;
    const cross = svg("path", { d: `M${x - 0.02} ${y}h.04M${x} ${y - 0.02}v.04`, class: "cursor" });
    this.#canvas.replaceChildren(...shapes, drawn, cross);
    this.#list.replaceChildren(...this.#shapes.map((shape) => this.#entry(shape)));
    this.#save.disabled = this.#shapes.length === 0 && this.#points.length < 3;
  }

  #entry(shape) {
    const remove = element("button", { type: "button", class: "link" }, "Remove");
    remove.addEventListener("click", () => {
      this.#shapes = this.#shapes.filter((other) => other !== shape);
      this.#show();
    });
    return element("li", {}, `${KINDS[shape.kind]}: polygon of ${shape.points.length} corners `, remove);
  }
}

/** What a product inspects, in words. */
function areaWords({ area, learned_area: learned, false_alarm_rate: rate }) {
  const kept = area ?? learned;
  if (!kept) return "The whole image is inspected.";
  const patches = kept.patches.join("");
  const share = percent(patches.replaceAll("0", "").length / patches.length);
  if (!area) return `${share} of the image is inspected, which it was learned from.`;
  return area.calibration_images === null
    ? `${share} of the image is inspected. At most ${percent(rate)} of good images alarm; the threshold is from before it had this area.`
    : `${share} of the image is inspected, with a threshold of ${area.calibration_images} good images within it.`;
}

function rounded(value) {
  return Number(Math.min(Math.max(value, 0), 1).toFixed(DIGITS));
}

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
