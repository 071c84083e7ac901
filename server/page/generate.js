// One request at a time: its chunks become versions of an answer. What they look like is transcript.js's.

import { Problem, stream } from "./api.js";
import { chatBody, completionBody } from "./request.js";
import { newVersion, settings } from "./state.js";

const MAX_WAIT = 180; // seconds in which a server that is busy or starts is asked again

const decoders = new WeakMap(); // of bytes that are no whole character yet, by version
let running = null; // the AbortController of the request under way

export const isRunning = () => running !== null;

export function stop() {
  running?.abort();
}

/** What would be sent for this answer, which follows these turns; `isMore` asks for more of what it says. */
export function requestOf(answer, before, isMore = false) {
  const version = answer.versions[answer.active];
  const given = isMore ? { ...settings, n: "", probabilities: version.tokens.length > 0 } : settings; // all of it, or none
  if (answer.kind === "completion") {
    return { path: "v1/completions", body: completionBody(answer.prompt + (isMore ? version.text : ""), given) };
  }
  const body = chatBody(isMore ? [...before, answer] : before, given);
  if (isMore) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  return { path: "v1/chat/completions", body };
}

/** Ask for new versions of an answer, or for more of the one shown; `onchange` is called whenever there is news. */
export async function generate(answer, before, isMore, onchange) {
  const controller = new AbortController();
  running = controller;
  const first = isMore ? answer.active : answer.versions.length;
  answer.active = first;
  if (isMore) Object.assign(answer.versions[first], { finish: null, problem: null });
  const version = (choice) => (answer.versions[first + choice] ??= newVersion());
  version(0);
  try {
    const { path, body } = requestOf(answer, before, isMore);
    Object.assign(body, { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } });
    await patiently(() => receive(path, body, controller.signal, version, onchange), version(0), controller.signal, onchange);
  } catch (error) {
    const problem = problemOf(error);
    for (const each of answer.versions.slice(first)) {
      if (error.name === "AbortError") each.finish ??= "stopped";
      else if (each.finish === null) each.problem = problem;
    }
  } finally {
    if (running === controller) running = null;
    for (const each of answer.versions) delete each.waiting;
    onchange();
  }
}

function problemOf(error) {
  if (error instanceof Problem) return { kind: error.kind, title: error.title, detail: error.detail };
  return { kind: "settings", title: "This cannot be sent", detail: error.message };
}

/** Ask again while the server is busy or starts, as long as it names, and no longer than MAX_WAIT. */
async function patiently(ask, version, signal, onchange) {
  const giveUp = Date.now() + MAX_WAIT * 1000;
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.kind !== "busy" || Date.now() + error.retryAfter * 1000 > giveUp) throw error;
      version.waiting = { title: error.title, detail: error.detail, until: Date.now() + error.retryAfter * 1000 };
      onchange();
      await pause(error.retryAfter * 1000, signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

async function receive(path, body, signal, version, onchange) {
  const start = performance.now();
  const before = version(0).stats?.tokens ?? 0; // of the text that is continued
  let firstAt = null;
  for await (const chunk of stream(path, body, signal)) {
    const now = performance.now();
    for (const choice of chunk.choices ?? []) {
      const target = version(choice.index);
      delete target.waiting;
      addDelta(target, choice, now - start);
      firstAt ??= now;
      target.stats ??= {};
    }
    if (firstAt !== null) addStats(version(0), chunk.usage, { start, firstAt, now, before });
    onchange();
  }
}

function addStats(version, usage, { start, firstAt, now, before }) {
  const tokens = usage?.completion_tokens ?? 0;
  const seconds = (now - firstAt) / 1000;
  Object.assign(version.stats, {
    ttft: firstAt - start,
    tokens: usage ? before + tokens : version.stats.tokens,
    prompt: usage?.prompt_tokens ?? version.stats.prompt,
    cached: usage?.prompt_tokens_details?.cached_tokens ?? version.stats.cached,
    rate: tokens > 1 && seconds > 0.05 ? (tokens - 1) / seconds : version.stats.rate,
  });
}

function addDelta(version, choice, elapsed) {
  const delta = choice.delta ?? { content: choice.text };
  const thought = delta.reasoning_content ?? delta.reasoning;
  version.text += delta.content ?? "";
  if (thought) {
    version.reasoning += thought;
    version.thinkTime = elapsed;
  }
  for (const part of delta.tool_calls ?? []) addToolCall(version, part);
  if (choice.logprobs) version.tokens.push(...join(version, readTokens(choice.logprobs)));
  if (choice.finish_reason) version.finish = choice.finish_reason;
}

function addToolCall(version, part) {
  const call = (version.toolCalls[part.index ?? version.toolCalls.length] ??= { id: "", name: "", arguments: "" });
  if (part.id) call.id = part.id;
  call.name += part.function?.name ?? "";
  call.arguments += part.function?.arguments ?? "";
}

/** Characters of several tokens are shown with the last of them; `raw` is what such a token is called. */
function join(version, tokens) {
  if (!decoders.has(version)) decoders.set(version, new TextDecoder());
  return tokens.map(({ text, bytes, ...rest }) => {
    const part = bytes ?? [...text.matchAll(/\\x([0-9a-f]{2})/g)].map(([, digits]) => Number.parseInt(digits, 16));
    if (!text.startsWith("bytes:") && !text.includes("\ufffd")) return { text, ...rest };
    return { text: decoders.get(version).decode(new Uint8Array(part), { stream: true }), raw: text, ...rest };
  });
}

/** The tokens of a chat's logprobs or of a completion's, in one form. */
function readTokens(logprobs) {
  if (logprobs.content) {
    return logprobs.content.map(({ token, bytes, logprob, top_logprobs: top }) => ({
      text: token,
      bytes,
      logprob,
      top: (top ?? []).map((other) => ({ text: other.token, logprob: other.logprob })),
    }));
  }
  return (logprobs.tokens ?? []).map((text, index) => ({
    text,
    logprob: logprobs.token_logprobs[index],
    top: Object.entries(logprobs.top_logprobs?.[index] ?? {})
      .map(([other, logprob]) => ({ text: other, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}
