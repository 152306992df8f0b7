// The views of the page, of which one is shown: the one that the address names after "#".

import { byId } from "./view.js";

const VIEWS = ["inspect", "teach", "products"];

/** The name of the view that is shown. */
export function currentView() {
  const [name] = location.hash.slice(1).split("/");
  return VIEWS.includes(name) && !byId(`to-${name}`).hidden ? name : VIEWS[0];
}

/** What follows the view's name in the address: a product's name. */
export function viewDetail() {
  const detail = location.hash.slice(1).split("/")[1] ?? "";
  try {
    return decodeURIComponent(detail);
  } catch { // a percent sign that somebody typed
    return "";
  }
}

/** The address of a view, with a product's name. */
export function addressOf(name, detail = "") {
  return `#${name}${detail ? `/${encodeURIComponent(detail)}` : ""}`;
}

let shown = ""; // the view that is shown
let tell = () => {};

/** Show the view that the address names, now and whenever that changes; `onShow(name)` is called then. */
export function followAddress(onShow) {
  tell = onShow;
  showView();
  addEventListener("hashchange", () => {
    shown = ""; // another product of the same view
    showView();
    focusView();
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    focusView();
  });
}

/** Offer a view, or not. */
export function offer(name, isOffered) {
  byId(`to-${name}`).hidden = !isOffered;
  showView();
}

function focusView() {
  byId(`view-${currentView()}`).querySelector("h1").focus({ preventScroll: true });
}

function showView() {
  const current = currentView();
  if (current === shown) return;
  shown = current;
  for (const name of VIEWS) {
    byId(`view-${name}`).hidden = name !== current;
    if (name === current) byId(`to-${name}`).setAttribute("aria-current", "page");
    else byId(`to-${name}`).removeAttribute("aria-current");
  }
  tell(current);
}
