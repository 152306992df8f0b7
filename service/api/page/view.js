// The views of the page: each function turns a response into elements. Product names are only ever inserted as text.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  good: "M5 12.5l4.5 4.5L19 7.5",
  defect: "M12 5v9M12 18.5v.5",
  problem: "M7 7l10 10M17 7L7 17",
  unknown: "M9 9.2a3.1 3.1 0 1 1 4.6 2.7c-1 .6-1.6 1.2-1.6 2.4M12 18v.3",
};
const RATES = [0.001, 0.005, 0.01, 0.02, 0.05]; // false-positive rates to choose from
const FAR = 4; // margins above the threshold in the middle of the score bar's right half
const STAGES = ["decode", "queue", "inference", "encode"];

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Create an element; `class` and names with a hyphen become attributes, other names properties. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class" || name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** A number with digits depending on its magnitude: 1,234.5 · −87.25 · 0.1234. */
export function number(value) {
  const size = Math.abs(value);
  const digits = size >= 100 ? 1 : size >= 1 ? 2 : 4;
  const options = { minimumFractionDigits: Math.min(digits, 2), maximumFractionDigits: digits };
  return value.toLocaleString("en", options).replace("-", "−");
}

/** A fraction as a percentage with digits depending on its magnitude: 12 % · 1.5 % · 0.02 % · under 0.01 %. */
export function percent(fraction) {
  const value = 100 * fraction;
  if (value > 0 && value < 0.01) return "under 0.01 %";
  const digits = value >= 10 ? 0 : value >= 1 ? 1 : 2;
  return `${Number(value.toFixed(digits)).toLocaleString("en")} %`;
}

/** The result in words, for screen readers. */
export function resultSentence(result) {
  if (result.verdict === "unknown_product") {
    return `Unknown product. The nearest learned product is ${result.routing.candidates[0].name}.`;
  }
  const verdict = result.is_anomalous ? "Defect found" : "Good";
  const numbers = `score ${number(result.score)}, threshold ${number(result.threshold)}`;
  return `${verdict}. Product ${result.task.name}, ${numbers}.`;
}

/**
 * The result of one image; `scale` comes from heatmap.js, `milliseconds` is the round-trip time. `saving` has the words
 * of buttons, and what each calls.
 */
export function resultView(result, scale, fileName, milliseconds, saving) {
  return [verdictView(result), ...warningViews(result), scoreView(result, scale), ...regionsView(result),
    routingView(result), timingView(result, milliseconds), sourceView(result, fileName), savingView(saving)];
}

/** The verdict in one line, for screens that show the result below the image. */
export function summaryView(result) {
  const { verdict, task, score, threshold, is_anomalous: isAnomalous, routing } = result;
  if (verdict === "unknown_product") {
    return [element("strong", { class: "unknown" }, "Unknown product"), ` nearest: ${routing.candidates[0].name}`];
  }
  return [element("strong", { class: isAnomalous ? "defect" : "good" }, isAnomalous ? "Defect" : "Good"),
    ` ${task.name} · ${number(score)} ${isAnomalous ? "above" : "below"} ${number(threshold)}`];
}

/** The result of an image of an unknown product. `scoreAs` is called with the product to score the image as. */
export function unknownView(result, fileName, milliseconds, scoreAs) {
  const buttons = result.routing.candidates.map(({ name }) =>
    element("button", { type: "button", class: "button", onclick: () => scoreAs(name) }, `Score as ${name}`));
  const words = element("div", {},
    element("h2", { id: "verdict" }, "Unknown product"),
    element("p", { class: "quiet" }, "The image matches no learned product, so it was not scored."),
    element("div", { class: "choices" }, ...buttons));
  return [element("div", { class: "verdict unknown" }, icon("unknown"), words), ...warningViews(result),
    routingView(result), timingView(result, milliseconds), sourceView(result, fileName)];
}

/** The regions as boxes over the image, numbered as in the list. */
export function regionBoxes({ regions, image }) {
  return regions.map(({ x, y, width, height }, index) => {
    const box = element("span", { class: "region" }, element("span", {}, String(index + 1)));
    box.style.left = `${(100 * x) / image.width}%`;
    box.style.top = `${(100 * y) / image.height}%`;
    box.style.width = `${(100 * width) / image.width}%`;
    box.style.height = `${(100 * height) / image.height}%`;
    return box;
  });
}

function sourceView({ image }, fileName) {
  return element("p", { class: "quiet source" }, element("span", { class: "file-name" }, fileName),
    ` · ${image.width} × ${image.height} pixels`);
}

function savingView(saving) {
  return element("p", { class: "saving" }, ...Object.entries(saving).map(([words, onclick]) =>
    element("button", { type: "button", class: "link", onclick }, words)));
}

function verdictView({ is_anomalous: isAnomalous, task, routing }) {
  const kind = isAnomalous ? "defect" : "good";
  return element("div", { class: `verdict ${kind}` },
    icon(kind),
    element("div", {},
      element("h2", { id: "verdict" }, isAnomalous ? "Defect" : "Good"),
      element("p", {}, element("strong", { id: "verdict-product" }, task.name),
        element("span", { class: "quiet" }, routing.forced ? " · chosen by you" : " · recognised"))));
}

function warningViews({ warnings }) {
  return warnings.map((warning) => element("p", { class: "block", role: "note" }, `Note: ${warning}.`));
}

function regionsView({ regions, is_anomalous: isAnomalous }) {
  if (!regions.length && !isAnomalous) return [];
  const rows = regions.map((region) => element("li", {},
    element("span", {}, `${region.width} × ${region.height} at ${region.x}, ${region.y}`),
    element("span", { class: "figure" }, `${percent(region.area_fraction)} · peak ${number(region.peak)}`)));
  const none = "No single region stands out; the anomaly is spread over the image.";
  return [element("div", { class: "block" },
    element("div", { class: "headline" }, element("h3", {}, "Regions"),
      element("span", { class: "quiet" }, "pixels, fraction of the image")),
    rows.length ? element("ol", { class: "region-list", id: "region-list" }, ...rows)
      : element("p", { class: "quiet" }, none))];
}

function scoreView(result, scale) {
  const { score, threshold, p_value: pValue, false_alarm_rate: rate, is_anomalous: isAnomalous } = result;
  const marker = element("span", { class: "marker" });
  marker.style.setProperty("--position", barPosition(score, threshold, scale.low));
  const side = isAnomalous ? "above" : "below";
  const sentence = `${number(Math.abs(score - threshold))} ${side} the threshold`;
  return element("div", { class: "block" },
    element("div", { class: "headline" },
      element("h3", {}, "Score"), element("output", { id: "score", class: "figure" }, number(score))),
    element("div", { class: `scale ${isAnomalous ? "defect" : "good"}`, role: "img",
      "aria-label": `Score ${number(score)}, ${sentence} of ${number(threshold)}` }, marker),
    element("div", { class: "ticks", "aria-hidden": "true" },
      tick(scale.low, "normal"), tick(threshold, "threshold"),
      tick(threshold + FAR * (threshold - scale.low), `${FAR} margins above`)),
    element("p", { class: "quiet" }, `${sentence[0].toUpperCase()}${sentence.slice(1)}, which ${percent(rate)} of good `
      + "images exceed. Of good images, ", element("strong", { id: "p-value" }, percent(pValue)),
    " score at least this high."));
}

/**
 * The place of a score on its bar: linear from `low` (0) to the threshold (0.5), then ever slower towards 1, so that
 * scores far above the threshold can still be told apart. The margin is the distance from `low` to the threshold.
 */
export function barPosition(score, threshold, low) {
  const margins = (score - threshold) / (threshold - low);
  return margins < 0 ? Math.max(0, 0.5 * (1 + margins)) : 0.5 + (0.5 * margins) / (margins + FAR);
}

function tick(value, word) {
  return element("span", {}, element("span", {}, number(value)), element("span", { class: "quiet" }, word));
}

function routingView({ routing, task }) {
  const farthest = Math.max(...routing.candidates.map(({ distance }) => distance), Number.MIN_VALUE);
  const rows = routing.candidates.map(({ name, distance }) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${Math.max(1, (100 * distance) / farthest)}%`;
    const track = element("span", { class: "track", "aria-hidden": "true" }, bar);
    const used = name === task?.name;
    return element("li", used ? { class: "used", "aria-current": "true" } : {},
      element("span", { class: "name" }, name), element("span", { class: "figure" }, number(distance)),
      ...(routing.candidates.length > 1 ? [track] : [])); // a single bar would be meaningless
  });
  return element("div", { class: "block" },
    element("div", { class: "headline" }, element("h3", {}, "Routing"),
      element("span", { class: "quiet" }, "distance, nearest first")),
    element("ol", { class: "candidates", id: "candidates" }, ...rows),
    element("p", { class: "quiet" }, routingSentence(routing, task)));
}

function routingSentence({ forced, margin, candidates }, task) {
  if (!task) return "The nearest product is too far away.";
  const nearest = candidates[0]?.name;
  if (forced && nearest !== task.name) return `You chose ${task.name}; automatic routing would have taken ${nearest}.`;
  if (forced) return "Automatic routing would have chosen the same product.";
  if (margin === null) return "Only one product has been learned, so there is no choice.";
  return `The next product is ${number(margin)} farther away.`;
}

function timingView({ timing_ms: timing }, milliseconds) {
  const total = STAGES.reduce((sum, stage) => sum + timing[stage], 0);
  const segments = STAGES.map((stage) => {
    const segment = element("span", { class: stage });
    segment.style.flexGrow = timing[stage];
    return segment;
  });
  const entries = STAGES.map((stage) => element("div", { class: stage },
    element("dt", {}, stage), element("dd", { class: "figure" }, time(timing[stage]))));
  return element("div", { class: "block" },
    element("div", { class: "headline" }, element("h3", {}, "Time"),
      element("span", { class: "quiet" }, `${time(total)} in the service, ${time(milliseconds)} in all`)),
    element("div", { class: "stages", "aria-hidden": "true" }, ...segments),
    element("dl", { class: "timing" }, ...entries));
}

function time(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(1)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

/** Shown while a response is awaited, or while other images come first. */
export function busyView(fileName, isWaiting) {
  const word = isWaiting ? "Waiting…" : "Inspecting…";
  return [element("div", { class: "verdict busy" }, element("span", { class: "spinner", "aria-hidden": "true" }),
    element("div", {}, element("h2", {}, word), element("p", { class: "quiet file-name" }, fileName)))];
}

/** An error. `again`, if given, is called by a button that repeats the request; `note` adds a line. */
export function problemView({ title, detail, status, instance }, again, note) {
  const children = [element("h2", { id: "problem-title" }, title), element("p", { id: "problem-detail" }, detail)];
  const reference = status >= 500 ? ` · ${instance}` : ""; // also in the log
  if (status) children.push(element("p", { class: "quiet" }, `Status ${status}${reference}`));
  if (note) children.push(element("p", { class: "quiet" }, note));
  if (again) children.push(element("button", { type: "button", class: "button", onclick: again }, "Try again"));
  const words = element("div", {}, ...children);
  return [element("div", { class: "verdict problem", role: "alert" }, icon("problem"), words)];
}

/**
 * The false-positive rates to choose from. The service's default, `standard`, has the value "" and is not sent;
 * `selected` is the value to select.
 */
export function rateOptions(standard, selected) {
  const rates = [...new Set([...RATES, standard])].sort((a, b) => a - b);
  return rates.map((rate) => {
    const value = rate === standard ? "" : String(rate);
    return element("option", { value, selected: value === selected }, percent(rate) + (value ? "" : " (default)"));
  });
}

/** A form that asks for an API key; `onKey` is called with it. */
export function keyView(onKey) {
  const input = element("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const onsubmit = (event) => {
    event.preventDefault();
    onKey(input.value.trim());
  };
  return element("form", { class: "key", onsubmit },
    element("label", { htmlFor: "key" }, "This service needs an API key."), input,
    element("button", { type: "submit", class: "button" }, "Use"));
}

/** Buttons for sample images; `onChoose` is called with the name of one. */
export function samplesView(names, onChoose) {
  return names.map((name) => element("button", { type: "button", class: "sample", onclick: () => onChoose(name) },
    element("img", { src: `samples/${encodeURIComponent(name)}`, alt: "", loading: "lazy" }),
    element("span", {}, name.replace(/\.[^.]*$/, ""))));
}

/** The learned products as a table, or what to do when there are none. */
export function productsView({ tasks, checkpoint }) {
  if (!tasks.length) {
    const command = `moleflow train DATA --task NAME --checkpoint ${checkpoint.name}`;
    return [element("p", {}, "No product has been learned yet. Train one:"),
      element("pre", { tabIndex: 0 }, element("code", {}, command))];
  }
  const rows = tasks.map((task) => element("tr", {},
    element("th", { scope: "row" }, task.name, date(task.learned_at)),
    element("td", { class: "figure", title: calibrationWords(task) },
      task.train_images.toLocaleString("en")),
    element("td", { class: "figure", title: `${percent(task.false_alarm_rate)} of good images score above it` },
      number(task.threshold))));
  const head = ["Product", "Images", "Threshold"].map((text, column) =>
    element("th", { scope: "col", class: column > 0 ? "figure" : "" }, text));
  return [
    element("table", { "aria-labelledby": "products-title" },
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)),
    element("p", { class: "quiet checkpoint" }, `${checkpoint.name} · `,
      element("code", { title: checkpoint.digest }, checkpoint.digest.slice(0, 12))),
  ];
}

/** How a product's threshold was estimated. */
export function calibrationWords({ held_out_images: count, folds }) {
  return folds > 1 ? `threshold estimated by cross-fitting in ${folds} folds`
    : `threshold estimated on ${count} more, held-out images`;
}

/** When a product was learned. */
export function date(iso) {
  const when = new Date(iso);
  const text = when.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
  return element("time", { dateTime: iso, title: when.toLocaleString("en-GB") }, `learned ${text}`);
}

function icon(kind) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[kind]);
  svg.append(path);
  return svg;
}
