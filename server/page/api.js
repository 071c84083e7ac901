// Requests to the server beneath this page's address, and what can go wrong with them.

import { key } from "./state.js";

export const address = (path) => new URL(path, document.baseURI).href;

/** A failure that the page shows. kind: offline, key, busy, context, refused, fault, broken. */
export class Problem extends Error {
  constructor(kind, title, detail = "", retryAfter = null) {
    super(title);
    Object.assign(this, { kind, title, detail, retryAfter });
  }
}

export function headers(extra = {}) {
  const bytes = new TextEncoder().encode(key.get()); // a header's characters stand for bytes
  return bytes.length > 0 ? { ...extra, Authorization: `Bearer ${String.fromCharCode(...bytes)}` } : extra;
}

/** GET a JSON answer. */
export async function getJson(path, options = {}) {
  const response = await reach(path, { headers: headers(), ...options });
  if (!response.ok) throw await problemOf(response);
  return response.json();
}

/** POST a request that streams; yields its chunks, the last of which comes before `[DONE]`. */
export async function* stream(path, body, signal) {
  const response = await reach(path, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await problemOf(response);
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return;
    const chunk = JSON.parse(event);
    if (chunk.error) throw streamProblem(chunk.error);
    yield chunk;
  }
  throw new Problem("broken", "The answer broke off", "The connection ended in the middle of it.");
}

async function reach(path, options) {
  try {
    return await fetch(address(path), { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("offline", "The server cannot be reached", "It may have been stopped, or the network is down.");
  }
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length > 0) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw new Problem("broken", "The answer broke off", "The connection was lost in the middle of it.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function problemOf(response) {
  const error = (await response.json().catch(() => null))?.error;
  const message = error?.message ?? `The server answered with status ${response.status}.`;
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  if (response.status === 401) return new Problem("key", "This server asks for an API key", message);
  if (error?.code === "context_length_exceeded") {
    return new Problem("context", "This is longer than the model can read", message);
  }
  if (response.status === 503) return new Problem("busy", "The model is not ready", message, retryAfter ?? 2);
  if (response.status === 429) return new Problem("busy", "The server is busy", message, retryAfter ?? 2);
  if (response.status < 500) return new Problem("refused", "The server refused this request", message);
  return new Problem("fault", "The server had a fault", message);
}

function streamProblem(error) {
  return new Problem("broken", "The answer broke off", error.message ?? "The server had a fault.");
}
