// The anomaly map: read from the response, placed on a scale whose middle is the threshold, painted on a canvas.

import { COLOURS } from "./colours.js"; // made by the service, which colours its overlays alike

const LONGEST_SIDE = 1024; // of the canvas; more pixels would add no detail to the smooth map

/** The map of a response as `{ height, width, values, ordinary, peak }`; it must have come as npy. */
export function readMap({ shape: [height, width], data, maximum }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  // The numbers are the tail of a .npy file: little-endian float32 in rows, after a header of varying length.
  const values = new Float32Array(bytes.slice(-4 * height * width).buffer);
  return { height, width, values, ordinary: median(values), peak: maximum };
}

/**
 * The scale of one image: 0 is the level of its ordinary parts (the map's median), 0.5 the threshold, and 1 as far
 * above it as the ordinary level is below, or the score where that is higher. It is that of the service's overlays.
 *
 * `ofScore` places an image score. `ofMap` places a value of the map, which was smoothed and so peaks below the patches
 * that made the score: it is stretched about the ordinary level until its peak stands where the score does. Colours
 * past the middle therefore appear exactly when the verdict is a defect.
 */
export function scaleOf({ score, threshold }, { ordinary, peak }) {
  // In an image that is defective all over, even the median is above the threshold: use a symmetric scale.
  const below = ordinary < threshold ? threshold - ordinary : Math.max(score - threshold, 1);
  const low = threshold - below;
  const top = Math.max(score, threshold + below);
  const ofScore = (value) => {
    const half = value < threshold ? below : top - threshold;
    const position = 0.5 + (value - threshold) / (2 * half);
    return Math.min(Math.max(position, 0), 1);
  };
  const isStretched = peak > low && score > low;
  const gain = isStretched ? (score - low) / (peak - low) : 1;
  const offset = isStretched ? 0 : score - peak;
  const ofMap = (value) => ofScore(low + (value - low) * gain + offset);
  return { low, top, ofScore, ofMap };
}

/** Paint the map on a canvas with the proportions of an image of `image.width` × `image.height`. */
export function paintMap(canvas, map, scale, image) {
  const reduction = Math.max(image.width, image.height) / LONGEST_SIDE;
  canvas.width = Math.max(1, Math.round(image.width / reduction));
  canvas.height = Math.max(1, Math.round(image.height / reduction));
  const context = canvas.getContext("2d");
  const drawn = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(drawn.data.buffer);
  const levels = Float32Array.from(map.values, (value) => scale.ofMap(value) * (COLOURS.length - 1));
  const columns = neighbours(canvas.width, map.width);
  const rows = neighbours(canvas.height, map.height);
  rows.forEach(([above, under, v], y) => {
    const upper = above * map.width;
    const lower = under * map.width;
    for (let x = 0; x < canvas.width; x += 1) {
      const [left, right, u] = columns[x];
      const first = levels[upper + left] * (1 - u) + levels[upper + right] * u;
      const second = levels[lower + left] * (1 - u) + levels[lower + right] * u;
      pixels[y * canvas.width + x] = PACKED[Math.ceil(first * (1 - v) + second * v)];
    }
  });
  context.putImageData(drawn, 0, 0);
}

/** Paint all colours of the scale, from left to right, on a canvas one pixel high. */
export function paintLegend(canvas) {
  canvas.width = COLOURS.length;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  const drawn = context.createImageData(COLOURS.length, 1);
  new Uint32Array(drawn.data.buffer).set(PACKED);
  context.putImageData(drawn, 0, 0);
}

// For each of `size` pixels: the two map cells to interpolate (half-pixel centres) and the weight of the second.
function neighbours(size, cells) {
  return Array.from({ length: size }, (_, index) => {
    const position = Math.min(Math.max(((index + 0.5) * cells) / size - 0.5, 0), cells - 1);
    const first = Math.floor(position);
    return [first, Math.min(first + 1, cells - 1), position - first];
  });
}

function median(values) {
  const sorted = Float32Array.from(values).sort();
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.floor(sorted.length / 2)]) / 2;
}

const PACKED = Uint32Array.from(COLOURS, ([red, green, blue, opacity]) =>
  ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0);
