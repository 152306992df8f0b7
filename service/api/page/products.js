// The view of products: search, look, rename, remove.

import { areaView } from "./area.js";
import { histogramView } from "./histogram.js";
import { fetchScores, removeProduct, renameProduct, wordsOf } from "./teaching-api.js";
import { byId, calibrationWords, date, element, number, percent } from "./view.js";
import { addressOf } from "./views.js";

const MOST_SHOWN = 100;

let learned = { tasks: [] };
let opened = ""; // the product whose details are shown
let close = () => {}; // hides them
let isTaught = false; // whether products can be taught
let onChange = () => {};

/** `onLearned` is called with the products after a change. */
export function startProducts(onLearned) {
  onChange = onLearned;
  byId("search").addEventListener("input", show);
}

/** Show the details of a product. */
export function openProduct(name) {
  opened = name;
  byId("search").value = name;
  show();
}

/** Show these products. */
export function listProducts(response, teaching) {
  [learned, isTaught] = [response, teaching];
  show();
}

function show() {
  const wanted = byId("search").value.trim().toLocaleLowerCase();
  const found = learned.tasks.filter(({ name }) => name.toLocaleLowerCase().includes(wanted));
  byId("product-list").replaceChildren(...found.slice(0, MOST_SHOWN).map(productView));
  const left = found.length - MOST_SHOWN;
  byId("product-count").textContent = left > 0 ? `${MOST_SHOWN} of ${found.length}; search for the others.`
    : `${found.length} of ${learned.tasks.length} ${learned.tasks.length === 1 ? "product" : "products"}`;
}

function productView(task) {
  const details = element("div", { class: "details", hidden: true });
  const button = element("button", { type: "button", class: "disclosure", "aria-expanded": "false" }, task.name);
  const set = (isOpen) => {
    details.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
  };
  const open = () => {
    close();
    [opened, close] = [task.name, () => set(false)];
    set(true);
    fill(details, task);
  };
  button.addEventListener("click", () => {
    if (details.hidden) open();
    else {
      set(false);
      opened = "";
    }
  });
  if (task.name === opened) open();
  return element("li", { class: "product" },
    element("div", { class: "row" }, element("h2", {}, button), date(task.learned_at),
      figure(task.train_images.toLocaleString("en"), "good images", calibrationWords(task)),
      figure(number(task.threshold), "threshold", `${percent(task.false_alarm_rate)} of good images score above it`)),
    details);
}

function figure(value, words, title) {
  return element("span", { class: "figure", title }, value, element("span", { class: "quiet" }, ` ${words}`));
}

async function fill(details, task) {
  const scores = element("div", { class: "quiet" }, "Loading…");
  details.replaceChildren(scores, areaView(task, (response) => {
    opened = task.name;
    onChange(response);
  }), actionsView(task));
  try {
    scores.replaceWith(histogramView(await fetchScores(task.name)));
  } catch (error) {
    scores.textContent = wordsOf(error);
  }
}

function actionsView(task) {
  const problem = element("p", { class: "quiet", role: "alert" });
  const input = element("input", { type: "text", value: task.name, required: true, "aria-label": `New name of ${task.name}` });
  const rename = element("form", { class: "rename" }, input, element("button", { type: "submit", class: "button" }, "Rename"));
  rename.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.value !== task.name) attempt(() => renameProduct(task.name, input.value.trim()), input.value.trim());
  });
  const remove = element("button", { type: "button", class: "button" }, "Remove…");
  remove.addEventListener("click", () => {
    if (remove.classList.contains("danger")) {
      attempt(() => removeProduct(task.name), "");
      return;
    }
    remove.classList.add("danger"); // the second click removes
    remove.textContent = `Remove ${task.name} for good`;
    setTimeout(() => {
      remove.classList.remove("danger");
      remove.textContent = "Remove…";
    }, 5000);
  });
  const teach = element("a", { class: "button", href: addressOf("teach", task.name) }, "Teach more images");

  async function attempt(change, name) {
    try {
      const response = await change();
      opened = name;
      onChange(response);
    } catch (error) {
      problem.textContent = wordsOf(error);
    }
  }

  return element("div", {}, element("div", { class: "product-actions" }, rename, ...(isTaught ? [teach] : []), remove), problem);
}
