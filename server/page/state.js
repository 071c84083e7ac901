// What the page remembers: settings and conversations in localStorage, the API key for this tab only.

const PREFIX = "deepseek-serve.";

export const DEFAULTS = {
  mode: "chat", // or "completion"
  model: "",
  system: "",
  temperature: "0.7",
  top_p: "",
  top_k: "",
  min_p: "",
  max_tokens: "",
  seed: "",
  n: "",
  presence_penalty: "",
  frequency_penalty: "",
  repetition_penalty: "",
  stop: "", // a line each
  reasoning_effort: "",
  probabilities: false,
  format: "text", // or "json_object", "json_schema"
  schema: "",
  tools: "",
  tool_choice: "auto",
  parallel_tool_calls: true,
  extra: "", // JSON of any further parameters
};

// What was stored or imported is anyone's: only values of the right type are taken over.
const items = (value) => (Array.isArray(value) ? value : []);
const string = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : null);

/** Settings as the form has them: texts, where an empty one leaves the choice to the server. */
export const settings = cleanSettings(read("settings"));

/** The turns of each mode. A turn is {kind: "user", text}, {kind: "tool", callId, name, text} or an answer. */
export const conversation = cleanConversation(read("conversation"));

export const turns = () => conversation[settings.mode];

/** An answer has several versions if it was asked for again, or with n. */
export function newAnswer(kind, prompt = "") {
  return { kind, prompt, versions: [], active: 0 };
}

export function newVersion() {
  return { text: "", reasoning: "", toolCalls: [], tokens: [], finish: null, stats: null, problem: null, thinkTime: null };
}

export function saveSettings() {
  write("settings", settings);
}

export function saveConversation() {
  if (write("conversation", conversation)) return;
  const light = structuredClone(conversation); // probabilities take the most room
  for (const turn of [...light.chat, ...light.completion]) for (const version of turn.versions ?? []) version.tokens = [];
  write("conversation", light);
}

/** The API key lives as long as this tab. */
export const key = {
  get: () => quietly(() => sessionStorage.getItem(`${PREFIX}key`)) ?? "",
  set: (value) => quietly(() => sessionStorage.setItem(`${PREFIX}key`, value)),
};

export function exportConversation() {
  return JSON.stringify({ application: "deepseek-serve", version: 1, settings, conversation }, null, 2);
}

/** Take over what another page exported; an error says what is wrong with it. */
export function importConversation(text) {
  const file = JSON.parse(text);
  if (file?.application !== "deepseek-serve" || file.version !== 1) throw new Error("This is no exported conversation.");
  Object.assign(settings, cleanSettings(file.settings));
  Object.assign(conversation, cleanConversation(file.conversation));
  saveSettings();
  saveConversation();
}

function cleanSettings(value) {
  const clean = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) if (typeof value?.[name] === typeof DEFAULTS[name]) clean[name] = value[name];
  if (!["chat", "completion"].includes(clean.mode)) clean.mode = DEFAULTS.mode;
  return clean;
}

function cleanConversation(value) {
  const clean = (list, kinds) => items(list).filter((turn) => kinds.includes(turn?.kind)).map(cleanTurn);
  return { chat: clean(value?.chat, ["user", "tool", "answer"]), completion: clean(value?.completion, ["completion"]) };
}

function cleanTurn(turn) {
  if (turn.kind === "user") return { kind: "user", text: string(turn.text) };
  if (turn.kind === "tool") {
    return { kind: "tool", callId: string(turn.callId), name: string(turn.name), text: string(turn.text) };
  }
  const versions = items(turn.versions).map(cleanVersion);
  const active = Number.isInteger(turn.active) ? Math.max(0, Math.min(turn.active, versions.length - 1)) : 0;
  return { kind: turn.kind, prompt: string(turn.prompt), versions, active };
}

function cleanVersion(version) {
  const stats = version?.stats && typeof version.stats === "object" ? version.stats : null;
  const problem = version?.problem;
  return {
    text: string(version?.text),
    reasoning: string(version?.reasoning),
    toolCalls: items(version?.toolCalls).map((call) => ({
      id: string(call?.id),
      name: string(call?.name),
      arguments: string(call?.arguments),
    })),
    tokens: items(version?.tokens).map((token) => ({
      text: string(token?.text),
      raw: string(token?.raw) || undefined,
      logprob: number(token?.logprob),
      top: items(token?.top).map((other) => ({ text: string(other?.text), logprob: number(other?.logprob) })),
    })),
    finish: string(version?.finish) || null,
    stats: stats && Object.fromEntries(["ttft", "rate", "tokens", "prompt", "cached"].map((name) => [name, number(stats[name])])),
    problem: problem && { kind: string(problem.kind), title: string(problem.title), detail: string(problem.detail) },
    thinkTime: number(version?.thinkTime),
  };
}

function read(name) {
  return quietly(() => JSON.parse(localStorage.getItem(PREFIX + name)));
}

function write(name, value) {
  return quietly(() => localStorage.setItem(PREFIX + name, JSON.stringify(value)) ?? true) ?? false;
}

/** Storage may be full or blocked; the page then forgets, and works. */
function quietly(work) {
  try {
    return work();
  } catch {
    return null;
  }
}
