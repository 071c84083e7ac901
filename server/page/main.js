// The page's wiring: the composer, the conversation's verbs, the keyboard, the panel.

import { button, el, say } from "./dom.js";
import { generate, isRunning, requestOf, stop } from "./generate.js";
import { readModels, watch } from "./load.js";
import * as form from "./settings.js";
import { conversation, newAnswer, saveConversation, saveSettings, settings, turns } from "./state.js";
import { viewOf } from "./transcript.js";

const find = (id) => document.getElementById(id);
const [transcript, list, draft, panel, main] = ["transcript", "turns", "draft", "panel", "main"].map(find);
const narrow = matchMedia("(max-width: 60rem)");
let views = new Map();
let live = null; // the answer that is being written

// The conversation's verbs.

/** While an answer is being written, the verbs that ask for another do nothing. */
const idle = (verb) => (...details) => (isRunning() ? undefined : verb(...details));

const actions = {
  isLive: (turn) => turn === live,
  isLast: (turn) => turns().at(-1) === turn,
  changed: saveConversation,
  stop,
  openSettings: () => showPanel(true),
  renew: startAnew,
  regenerate: idle((turn) => ask(turn)),
  retry: idle((turn) => {
    turn.versions.splice(turn.active, 1, ...(turn.versions[turn.active].text ? [turn.versions[turn.active]] : []));
    ask(turn);
  }),
  edit: idle((turn, text) => {
    remember("The message was changed.");
    turns().splice(turns().indexOf(turn), Infinity, { kind: "user", text });
    render();
    askNext();
  }),
  editPrompt(turn) {
    draft.value = turn.prompt;
    resize();
    draft.focus();
  },
  continue: idle((turn) => {
    const next = newAnswer("completion", turn.prompt + turn.versions[turn.active].text);
    turns().push(next);
    render();
    ask(next);
  }),
  answerCalls: idle((turn, results) => {
    turns().push(...results);
    render();
    askNext();
  }),
  shorten: idle((turn) => {
    remember("The oldest turns were left out.");
    const before = turns().slice(0, turns().indexOf(turn));
    const users = before.filter((each) => each.kind === "user");
    const keepFrom = users.length > 1 ? before.indexOf(users[Math.ceil(users.length / 2)]) : 0;
    turns().splice(0, keepFrom);
    render();
    actions.retry(turn);
  }),
};

function send() {
  const text = draft.value;
  if (isRunning() || !text.trim()) return;
  draft.value = "";
  resize();
  if (settings.mode === "chat") {
    turns().push({ kind: "user", text: text.trim() });
    askNext();
  } else {
    const turn = newAnswer("completion", text);
    turns().push(turn);
    ask(turn);
  }
}

function askNext() {
  const answer = newAnswer("answer");
  turns().push(answer);
  ask(answer);
}

/** Ask for new versions of an answer; what follows it is no longer true. */
async function ask(answer) {
  if (isRunning()) return;
  const all = turns();
  const at = all.indexOf(answer);
  if (at + 1 < all.length && answer.kind === "answer") {
    remember("Later turns were removed.");
    all.splice(at + 1);
  }
  live = answer;
  document.documentElement.classList.add("running");
  transcript.setAttribute("aria-busy", "true");
  say("The model is answering.");
  const done = generate(answer, all.slice(0, at), () => schedule(answer));
  render();
  toEnd();
  await done;
  live = null;
  document.documentElement.classList.remove("running");
  transcript.setAttribute("aria-busy", "false");
  keepEnd(render);
  saveConversation();
  const version = answer.versions[answer.active];
  say(version.problem ? version.problem.title : version.finish === "stopped" ? "Stopped." : `The answer is complete: ${version.text.slice(0, 2000)}`);
}

function startAnew() {
  stop();
  if (turns().length > 0) remember("A new conversation.");
  conversation[settings.mode] = [];
  saveConversation();
  render();
  draft.focus();
}

/** Offer to undo what is about to be done to the turns. */
function remember(text) {
  const [mode, before] = [settings.mode, structuredClone(turns())];
  const undo = button("Undo", "undo", () => {
    stop();
    conversation[mode] = before;
    find("toast").replaceChildren();
    saveConversation();
    render();
  });
  toast(text, undo);
}

let toastTimer = null;

function toast(text, ...more) {
  find("toast").replaceChildren(el("div", {}, text, ...more));
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => find("toast").replaceChildren(), 10_000);
}

// Showing the turns.

function render() {
  const all = turns();
  const kept = new Map();
  for (const turn of all) kept.set(turn, views.get(turn) ?? viewOf(turn, actions));
  views = kept;
  const elements = [...views.values()].map((view) => view.element);
  if (elements.some((element, index) => list.children[index] !== element) || list.children.length !== elements.length) {
    list.replaceChildren(...elements);
  }
  for (const view of views.values()) view.update();
  document.documentElement.classList.toggle("empty", all.length === 0);
}

let isScheduled = false;

/** Show what has come, once a frame; stay at the end if the reader is there. */
function schedule(answer) {
  if (isScheduled) return;
  isScheduled = true;
  const paint = () => {
    isScheduled = false;
    keepEnd(() => views.get(answer)?.update());
  };
  if (document.hidden) setTimeout(paint, 200);
  else requestAnimationFrame(paint);
}

function keepEnd(change) {
  const wasAtEnd = isAtEnd();
  change();
  if (wasAtEnd) toEnd();
  else find("to-end").hidden = isAtEnd();
}

const isAtEnd = () => transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 60;

function toEnd() {
  transcript.scrollTop = transcript.scrollHeight;
  find("to-end").hidden = true;
}

// The composer, the keyboard, the panel.

function resize() {
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight + 2}px`;
  find("send").disabled = !draft.value.trim();
}

function showPanel(isOpen) {
  document.documentElement.classList.toggle("panel-open", isOpen);
  find("toggle-panel").setAttribute("aria-expanded", isOpen);
  panel.inert = !isOpen;
  main.inert = isOpen && narrow.matches;
  if (isOpen && narrow.matches) find("close-panel").focus();
}

function closePanel() {
  showPanel(false);
  find("toggle-panel").focus();
}

function setMode(mode) {
  settings.mode = mode;
  document.querySelector(`input[name='mode'][value='${mode}']`).checked = true;
  saveSettings();
  form.fill();
  draft.placeholder = mode === "chat" ? "Ask something" : "Begin a text, and the model goes on with it";
  render();
  toEnd();
}

function imported() {
  stop();
  setMode(settings.mode);
  toast("The conversation was read.");
}

function keys(event) {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    startAnew();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (isRunning()) stop();
    else if (narrow.matches && !panel.inert) closePanel();
  }
}

function copyAsCode() {
  try {
    const isChat = settings.mode === "chat";
    const text = draft.value || (isChat ? "" : turns().at(-1)?.prompt) || "Hello";
    const last = turns().at(-1);
    const before = isChat && !draft.value && last?.kind === "answer" ? turns().slice(0, -1) : [...turns(), { kind: "user", text }];
    const request = requestOf(newAnswer(isChat ? "answer" : "completion", text), before);
    form.showCode({ ...request, body: { ...request.body, stream: true } });
  } catch (error) {
    toast(error.message);
  }
}

/** Show the names of the models; without a key, the one that the server says it has. */
async function listModels(served) {
  const names = await readModels().catch(() => (served ? [served] : []));
  if (names.length === 0) return;
  if (!names.includes(settings.model)) settings.model = names[0];
  const field = find("model");
  field.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  field.value = settings.model;
  field.hidden = names.length < 2;
  for (const element of document.querySelectorAll(".model-name")) element.textContent = settings.model;
}

function start() {
  form.fill();
  form.bind(() => {});
  setMode(settings.mode);
  showPanel(!narrow.matches);
  narrow.addEventListener("change", () => showPanel(!narrow.matches));
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  draft.addEventListener("input", resize);
  draft.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", keys);
  document.addEventListener("key", () => listModels());
  transcript.addEventListener("scroll", () => {
    if (isAtEnd()) find("to-end").hidden = true;
  });
  const clicks = {
    stop,
    "to-end": toEnd,
    new: startAnew,
    "toggle-panel": () => showPanel(panel.inert),
    "close-panel": closePanel,
    "show-code": copyAsCode,
    export: form.download,
    import: () => form.upload(imported, toast),
    theme: () => {
      find("theme").title = `Theme: ${window.theme.next()}`;
      say(find("theme").title);
    },
  };
  for (const [id, work] of Object.entries(clicks)) find(id).addEventListener("click", work);
  find("model").addEventListener("change", ({ target }) => {
    settings.model = target.value;
    saveSettings();
    listModels();
  });
  for (const choice of document.querySelectorAll("input[name='mode']")) {
    choice.addEventListener("change", () => setMode(choice.value));
  }
  for (const example of document.querySelectorAll("[data-prompt]")) {
    example.addEventListener("click", () => {
      draft.value = example.dataset.prompt;
      send();
    });
  }
  watch((load) => {
    if (load.status !== "offline") listModels(load.model);
    say(find("load-state").textContent);
  });
  find("theme").title = `Theme: ${window.theme.name}`;
  resize();
  if (!narrow.matches) draft.focus();
}

start();
