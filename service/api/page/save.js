// Files of a result: the image with its map, and the response.

import { dimIgnored } from "./area.js";

/** Save the image with the map over it, in the image's size. */
export async function saveOverlay({ name, result, canPreview }, preview, overlay) {
  const { width, height } = result.image;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  if (canPreview) context.drawImage(preview, 0, 0, width, height);
  context.globalAlpha = overlay.style.opacity;
  context.drawImage(overlay, 0, 0, width, height);
  if (result.inspected) dimIgnored(canvas, result.inspected);
  save(await new Promise((resolve) => { canvas.toBlob(resolve); }), `${stem(name)}.overlay.png`);
}

/** Save the response, without the map's numbers. */
export function saveResponse({ name, result }) {
  const text = `${JSON.stringify({ ...result, anomaly_map: null }, null, 2)}\n`;
  save(new Blob([text], { type: "application/json" }), `${stem(name)}.json`);
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the download has begun by then
}
