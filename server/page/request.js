// From settings and turns to a request's body, and to the same request as a curl command or a Python program.

import { address } from "./api.js";

const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "seed", "n", "presence_penalty", "frequency_penalty", "repetition_penalty",
];
const OF_OPENAI = [ // what its Python client has arguments for; it takes the others in extra_body
  "model", "messages", "prompt", "temperature", "top_p", "seed", "n", "presence_penalty", "frequency_penalty", "stop",
  "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
  "parallel_tool_calls", "reasoning_effort", "stream",
];
const TOP_LOGPROBS = 5;
const COMPLETION_TOKENS = 256; // where nothing is set: OpenAI's default is 16

/** The body of a chat request. Raises an Error that names a field which is not valid JSON. */
export function chatBody(turns, settings) {
  const body = { ...common(settings), messages: messages(turns, settings.system) };
  if (settings.max_tokens !== "") body.max_completion_tokens = Number(settings.max_tokens);
  if (settings.probabilities) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  if (settings.reasoning_effort) body.reasoning_effort = settings.reasoning_effort;
  const tools = parse(settings.tools, "Tools", Array.isArray);
  if (tools?.length) {
    const named = !["auto", "none", "required"].includes(settings.tool_choice);
    body.tools = tools;
    body.tool_choice = named ? { type: "function", function: { name: settings.tool_choice } } : settings.tool_choice;
    if (!settings.parallel_tool_calls) body.parallel_tool_calls = false;
  }
  return { ...body, ...extra(settings) };
}

/** The body of a completion request. */
export function completionBody(prompt, settings) {
  const body = { ...common(settings), prompt };
  body.max_tokens = settings.max_tokens === "" ? COMPLETION_TOKENS : Number(settings.max_tokens);
  if (settings.probabilities) body.logprobs = TOP_LOGPROBS;
  return { ...body, ...extra(settings) };
}

function common(settings) {
  const body = settings.model ? { model: settings.model } : {};
  for (const name of NUMBERS) if (settings[name] !== "") body[name] = Number(settings[name]);
  const stop = settings.stop.split("\n").filter((line) => line !== "");
  if (stop.length > 0) body.stop = stop.map(unescape);
  if (settings.format === "json_object") body.response_format = { type: "json_object" };
  if (settings.format === "json_schema") {
    const schema = parse(settings.schema, "JSON schema", isObject);
    if (!schema) throw new Error("JSON schema: it is empty.");
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  }
  return body;
}

function messages(turns, system) {
  const list = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.kind === "user") list.push({ role: "user", content: turn.text });
    else if (turn.kind === "tool") list.push({ role: "tool", tool_call_id: turn.callId, content: turn.text });
    else {
      const version = turn.versions[turn.active];
      if (!version || (!version.text && version.toolCalls.length === 0)) continue;
      const calls = version.toolCalls.map(({ id, name, arguments: text }) => ({
        id,
        type: "function",
        function: { name, arguments: text },
      }));
      list.push({ role: "assistant", content: version.text, ...(calls.length ? { tool_calls: calls } : {}) });
    }
  }
  return list;
}

const extra = (settings) => parse(settings.extra, "Further parameters", isObject) ?? {};
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const unescape = (line) => line.replaceAll("\\n", "\n").replaceAll("\\t", "\t");

/** A field's JSON; null if it is empty. */
export function parse(text, name, isRight) {
  if (!text.trim()) return null;
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: not valid JSON. ${error.message}.`);
  }
  if (!isRight(value)) throw new Error(`${name}: a JSON ${isRight === Array.isArray ? "list" : "object"} is needed.`);
  return value;
}

/** The names of the tools in the field; none if it is not valid. */
export function toolNames(text) {
  try {
    return (parse(text, "Tools", Array.isArray) ?? []).map((tool) => tool?.function?.name).filter((name) => typeof name === "string");
  } catch {
    return [];
  }
}

export function asCurl(path, body, needsKey) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const lines = [`curl -N ${address(path)}`, "-H 'Content-Type: application/json'"];
  if (needsKey) lines.push('-H "Authorization: Bearer $OPENAI_API_KEY"');
  lines.push(`-d ${quoted(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

export function asPython(path, body, needsKey) {
  const fields = Object.entries(body).filter(([name]) => OF_OPENAI.includes(name));
  const beyond = Object.fromEntries(Object.entries(body).filter(([name]) => !OF_OPENAI.includes(name)));
  if (Object.keys(beyond).length > 0) fields.push(["extra_body", beyond]);
  if (!body.model) fields.unshift(["model", ""]);
  const isChat = path.endsWith("chat/completions");
  const text = isChat ? 'chunk.choices[0].delta.content or ""' : "chunk.choices[0].text";
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(address("v1"))}${needsKey ? "" : ', api_key="none"'})${needsKey ? "  # reads OPENAI_API_KEY" : ""}`,
    `stream = client.${isChat ? "chat.completions" : "completions"}.create(`,
    ...fields.map(([name, value]) => `    ${name}=${python(value, 1)},`),
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    `        print(${text}, end="", flush=True)`,
  ].join("\n");
}

/** A JSON value as Python writes it. */
function python(value, depth = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => python(item, depth + 1))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, depth + 1)}`);
  const line = open + items.join(", ") + close;
  if (line.length < 80 && !line.includes("\n")) return line;
  const indent = "    ".repeat(depth + 1);
  return `${open}\n${items.map((item) => `${indent}${item},\n`).join("")}${indent.slice(4)}${close}`;
}
