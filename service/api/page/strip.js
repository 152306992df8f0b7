// The strip of thumbnails: one for each image, with its verdict.

import { element } from "./view.js";

const SIDE = 64; // of a thumbnail, in CSS pixels
const MARKS = { waiting: "", busy: "…", good: "✓", defect: "!", unknown: "?", problem: "×" };
const WORDS = {
  waiting: "waiting", busy: "being inspected", good: "good", defect: "defective", unknown: "of an unknown product",
  problem: "not inspected",
};

/** Shows `items` in `list`, and their counts in `summary`. */
export class Strip {
  #list;
  #summary;
  #onSelect;
  #buttons = new Map();

  constructor(list, summary, onSelect) {
    this.#list = list;
    this.#summary = summary;
    this.#onSelect = onSelect;
  }

  show(items, current) {
    for (const [item, button] of this.#buttons) {
      if (items.includes(item)) continue;
      button.parentElement.remove();
      this.#buttons.delete(item);
    }
    for (const item of items) {
      if (!this.#buttons.has(item)) this.#add(item);
      const button = this.#buttons.get(item);
      button.dataset.kind = item.kind;
      button.title = `${item.name}: ${WORDS[item.kind]}`;
      button.lastChild.textContent = MARKS[item.kind];
      button.setAttribute("aria-label", button.title);
      if (item === current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    this.#summary.textContent = counts(items);
    const shown = this.#buttons.get(current);
    if (shown) this.#reveal(shown);
  }

  /** Whether one of the thumbnails has the keyboard. */
  get hasFocus() {
    return this.#list.contains(document.activeElement);
  }

  focus(item) {
    this.#buttons.get(item)?.focus({ preventScroll: true });
  }

  #add(item) {
    const canvas = element("canvas", { width: 0, height: 0, "aria-hidden": "true" });
    const button = element("button", { type: "button", class: "thumbnail", onclick: () => this.#onSelect(item) },
      canvas, element("span", { "aria-hidden": "true" }));
    this.#buttons.set(item, button);
    this.#list.append(element("li", {}, button));
    paint(canvas, item.file);
  }

  // Only the strip scrolls, never the page.
  #reveal(button) {
    const { offsetLeft, offsetWidth } = button.parentElement;
    const { scrollLeft, clientWidth } = this.#list;
    if (offsetLeft < scrollLeft) this.#list.scrollLeft = offsetLeft;
    else if (offsetLeft + offsetWidth > scrollLeft + clientWidth) {
      this.#list.scrollLeft = offsetLeft + offsetWidth - clientWidth;
    }
  }
}

function counts(items) {
  const parts = Object.entries(WORDS)
    .map(([kind, word]) => [items.filter((item) => item.kind === kind).length, word])
    .filter(([count]) => count)
    .map(([count, word]) => `${count} ${word}`);
  return `${items.length} images: ${parts.join(", ")}`;
}

/** Paint the middle of an image, small: 50 whole photographs would take much memory. */
export async function paint(canvas, file) {
  const size = Math.round(SIDE * devicePixelRatio);
  let image;
  try {
    image = await createImageBitmap(file, { resizeHeight: size, resizeQuality: "medium" });
  } catch {
    return; // a kind that this browser cannot display
  }
  canvas.width = size;
  canvas.height = size;
  canvas.getContext("2d").drawImage(image, (size - image.width) / 2, 0);
  image.close();
}
