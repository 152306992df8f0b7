// The anomaly map: read from the response, placed on a scale whose middle is the threshold, painted on a canvas.

// Evenly spaced colours of inferno, whose lightness rises evenly (van der Walt and Smith, 2015; public domain).
const ANCHORS = [
  [0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99],
  [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164],
];
const LEVELS = 256;
// Where on the scale colours begin to cover the image, and where they cover it fully; 0.5 is the threshold.
const VISIBLE_FROM = 0.3;
const FULLY_VISIBLE_FROM = 0.7;
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
 * above it as the ordinary level is below, or the score where that is higher.
 *
 * `ofScore` places an image score. `ofMap` places a value of the map, which was smoothed and so peaks below the patches
 * that made the score: it is stretched about the ordinary level until its peak stands where the score does. Colours
 * past the middle therefore appear exactly when the verdict is a defect.
 */
export function scaleOf({ score, threshold }, { ordinary, peak }) {
  // An image that is defective all over has no ordinary part; then the scale reaches as far down as it does up.
  const below = ordinary < threshold ? threshold - ordinary : Math.max(score - threshold, Number.MIN_VALUE);
  const low = threshold - below;
  const top = Math.max(score, threshold + below);
  const ofScore = (value) => {
    const half = value < threshold ? below : top - threshold;
    const position = 0.5 + (value - threshold) / (2 * half);
    return Math.min(Math.max(position, 0), 1);
  };
  const stretch = peak > low && score > low ? (score - low) / (peak - low) : 0;
  const ofMap = (value) => (stretch ? ofScore(low + (value - low) * stretch) : ofScore(score));
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
  const levels = Float32Array.from(map.values, (value) => scale.ofMap(value) * (LEVELS - 1));
  const columns = neighbours(canvas.width, map.width);
  const rows = neighbours(canvas.height, map.height);
  rows.forEach(([above, under, v], y) => {
    const upper = above * map.width;
    const lower = under * map.width;
    for (let x = 0; x < canvas.width; x += 1) {
      const [left, right, u] = columns[x];
      const first = levels[upper + left] * (1 - u) + levels[upper + right] * u;
      const second = levels[lower + left] * (1 - u) + levels[lower + right] * u;
      pixels[y * canvas.width + x] = COLOURS[Math.ceil(first * (1 - v) + second * v)];
    }
  });
  context.putImageData(drawn, 0, 0);
}

/** Paint all colours of the scale, from left to right, on a canvas one pixel high. */
export function paintLegend(canvas) {
  canvas.width = LEVELS;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  const drawn = context.createImageData(LEVELS, 1);
  new Uint32Array(drawn.data.buffer).set(COLOURS);
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
  return sorted[Math.floor(sorted.length / 2)];
}

const COLOURS = Uint32Array.from({ length: LEVELS }, (_, level) => {
  const position = level / (LEVELS - 1);
  const anchor = Math.min(Math.floor(position * (ANCHORS.length - 1)), ANCHORS.length - 2);
  const share = position * (ANCHORS.length - 1) - anchor;
  const [red, green, blue] = ANCHORS[anchor].map((from, channel) =>
    Math.round(from + (ANCHORS[anchor + 1][channel] - from) * share));
  const rise = Math.min(Math.max((position - VISIBLE_FROM) / (FULLY_VISIBLE_FROM - VISIBLE_FROM), 0), 1);
  const opacity = Math.round(255 * rise * rise * (3 - 2 * rise)); // a smooth step, without visible edges
  return ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
});
