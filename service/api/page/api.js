// Requests to the service. Every failure becomes a Problem.

const RETRY_AFTER_SECONDS = 2; // for errors without Retry-After
const KEY = "moleflow-api-key"; // in the storage of the browser tab

/** A failed request: title and detail of a problem document (RFC 9457), or a description of a failure without one. */
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

  /** Whether the same request may succeed a little later: the queue is full, or the service is not ready. */
  get isTemporary() {
    return this.status === 429 || this.status === 503;
  }

  /** Whether an API key is missing or wrong. */
  get needsKey() {
    return this.status === 401;
  }

  /** Whether the service or the network is at fault, so that a retry makes sense. */
  get isRetryable() {
    return this.isTemporary || this.isUnreachable || this.needsKey || this.status >= 500;
  }
}

/** The learned products and the checkpoint: the response of GET /tasks. */
export function fetchTasks() {
  return request("tasks");
}

/** Resolves once the service is ready; rejects with a Problem while it is not. */
export function fetchReadiness() {
  return request("health/ready");
}

/** The names of the sample images; rejects where there are none. */
export function fetchSamples() {
  return request("samples");
}

/** One of them as a File. */
export async function fetchSample(name) {
  const path = `samples/${encodeURIComponent(name)}`;
  const response = await fetch(path);
  if (!response.ok) throw await problemOf(response);
  const blob = await response.blob();
  return new File([blob], name, { type: blob.type });
}

/**
 * Send one image. `choice.task` is a product's name, or "" to route; `choice.rate` is a false-positive rate, or "" for
 * the service's default. `signal` aborts the request.
 */
export function predict(file, choice, signal) {
  const form = new FormData();
  form.append("file", file, file.name || "image");
  return request(predictPath(choice, { map: "npy", map_size: "model" }), { method: "POST", body: form, signal });
}

/** The curl command for the same request with a file of this name. */
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

/** Use an API key for all further requests of this browser tab. */
export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** The JSON of a response. `options` are those of fetch; `contentType` is that of a body that is text. */
export async function request(path, options = {}) {
  return (await respond(path, "application/json", options)).json();
}

/** The text of a response, piece by piece as it arrives. */
export async function* stream(path, signal) {
  const response = await respond(path, "text/event-stream", { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) yield piece.value;
}

async function respond(path, accept, { contentType, ...options }) {
  const key = sessionStorage.getItem(KEY);
  const headers = {
    Accept: accept, ...(contentType && { "Content-Type": contentType }), ...(key && { Authorization: `Bearer ${key}` }),
  };
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(
      "The service cannot be reached",
      "The connection was refused or lost. Check that the service is running, and that the file is not far too large.",
      { isUnreachable: true },
    );
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const body = await response.json().catch(() => null);
  const retryAfter = Number(response.headers.get("Retry-After")) || RETRY_AFTER_SECONDS;
  const title = typeof body?.title === "string" ? body.title : response.statusText || "The request failed";
  const { status } = response;
  const detail = typeof body?.detail === "string" ? body.detail : `The service responded with status ${status}.`;
  return new Problem(title, detail, { status, instance: body?.instance ?? "", retryAfter });
}
