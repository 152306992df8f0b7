// What the page asks of the service, and how a refusal becomes one kind of error.

const RETRY_AFTER_SECONDS = 2; // where a refusal does not say when to come back

/** A refusal: the title and detail of a problem document (RFC 9457), or words for a failure without one. */
export class Problem extends Error {
  constructor(title, detail, more = {}) {
    const { status = 0, instance = "", retryAfter = RETRY_AFTER_SECONDS, isUnreachable = false } = more;
    super(title);
    this.name = "Problem";
    this.title = title;
    this.detail = detail;
    this.status = status;
    this.instance = instance;
    this.retryAfter = retryAfter;
    this.isUnreachable = isUnreachable;
  }

  /** Whether the same request may succeed a little later: a full queue, or a service that is not ready. */
  get isPassing() {
    return this.status === 429 || this.status === 503;
  }

  /** Whether the fault lies with the service or the way to it, so that trying again makes sense. */
  get isElsewhere() {
    return this.isPassing || this.isUnreachable || this.status >= 500;
  }
}

/** The learned products and the checkpoint: the answer of GET /tasks. */
export function fetchTasks() {
  return request("tasks");
}

/** Resolves once the service is ready; rejects with a Problem while it is not. */
export function fetchReadiness() {
  return request("health/ready");
}

/**
 * Send one image. `choice.task` is a product's name, or "" to route; `choice.rate` the share of good images that may
 * be called defective, or "" for the service's own. `signal` gives the request up.
 */
export function predict(file, choice, signal) {
  const form = new FormData();
  form.append("file", file, file.name || "image");
  return request(predictPath(choice, { map: "npy", map_size: "model" }), { method: "POST", body: form, signal });
}

/** A curl line that does for a file of that name what the page does. */
export function curlLine(fileName, choice) {
  const url = new URL(predictPath(choice, { map: "none" }), document.baseURI).href;
  const field = /[;,"\\]/.test(fileName) ? `file=@"${fileName.replace(/["\\]/g, "\\$&")}"` : `file=@${fileName}`;
  return `curl -F ${shellQuote(field)} ${shellQuote(url)}`;
}

function predictPath({ task, rate }, query) {
  const chosen = { ...(task && { task }), ...(rate && { false_alarm_rate: rate }) };
  return `predict?${new URLSearchParams({ ...chosen, ...query })}`;
}

function shellQuote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(
      "No answer from the service",
      "The connection was refused or broke off. Check that the service runs; a file far too large also ends this way.",
      { isUnreachable: true },
    );
  }
  if (!response.ok) throw await problemOf(response);
  return response.json();
}

async function problemOf(response) {
  const body = await response.json().catch(() => null);
  const retryAfter = Number(response.headers.get("Retry-After")) || RETRY_AFTER_SECONDS;
  const title = typeof body?.title === "string" ? body.title : response.statusText || "The request failed";
  const { status } = response;
  const detail = typeof body?.detail === "string" ? body.detail : `The service answered with status ${status}.`;
  return new Problem(title, detail, { status, instance: body?.instance ?? "", retryAfter });
}
