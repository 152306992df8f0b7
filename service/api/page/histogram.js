// A histogram of the scores of good images, with the threshold.

import { element, number } from "./view.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [320, 72];

/** The response of GET /tasks/{name}/scores as a picture with words. */
export function histogramView({ edges, counts, threshold, images }) {
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const most = Math.max(...counts, 1);
  const step = WIDTH / counts.length;
  const bars = counts.map((count, index) => shape("rect", {
    x: index * step + 0.5, y: HEIGHT - (HEIGHT * count) / most, width: step - 1, height: (HEIGHT * count) / most,
  }));
  const at = high > low ? (WIDTH * (threshold - low)) / (high - low) : WIDTH;
  const line = shape("line", { x1: at, x2: at, y1: 0, y2: HEIGHT });
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram",
    role: "img", "aria-label": `Scores of good images, from ${number(low)}; the threshold is ${number(threshold)}` });
  svg.append(...bars, line);
  return element("figure", { class: "scores" }, svg,
    element("div", { class: "ends", "aria-hidden": "true" }, element("span", {}, number(low)),
      element("span", {}, `threshold ${number(threshold)}`)),
    element("figcaption", { class: "quiet" }, `Scores of ${images.toLocaleString("en")} good images and altered copies `
      + "that it was not fitted to."));
}

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
