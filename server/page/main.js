// The page's wiring: modes, models, the keyboard, and what each button does.

import { bindComposer, focusDraft, setHint, write } from "./composer.js";
import { nextRequest, render, send, startAnew } from "./conversation.js";
import { say } from "./dom.js";
import { isRunning, stop } from "./generate.js";
import { readModels, watch } from "./load.js";
import { bindPanel, closePanel, isNarrow, isOverPage } from "./panel.js";
import * as form from "./settings.js";
import { saveConversation, saveSettings, settings } from "./state.js";
import { toast } from "./toast.js";
import { bindList, toEnd } from "./turn_list.js";

const HINTS = { chat: "Ask something", completion: "Begin a text, and the model goes on with it" };
const find = (id) => document.getElementById(id);

function setMode(mode) {
  settings.mode = mode;
  document.querySelector(`input[name='mode'][value='${mode}']`).checked = true;
  saveSettings();
  form.fill();
  setHint(HINTS[mode]);
  render();
  toEnd();
}

function imported() {
  stop();
  setMode(settings.mode);
  toast("The conversation was read.");
}

function showCode() {
  try {
    form.showCode(nextRequest());
  } catch (error) {
    toast(error.message);
  }
}

function changeTheme() {
  find("theme").title = `Theme: ${window.theme.next()}`;
  say(find("theme").title);
}

function keys(event) {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    startAnew();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (isRunning()) stop();
    else if (isOverPage()) closePanel();
  }
}

/** Show the names of the models; without a key, the one that the server says it has. */
async function listModels(served) {
  const names = await readModels().catch(() => (served ? [served] : []));
  if (names.length === 0) return;
  if (!names.includes(settings.model)) settings.model = names[0];
  const field = find("model");
  field.replaceChildren(...names.map((name) => new Option(name)));
  field.hidden = names.length < 2;
  showModel(settings.model);
}

function showModel(name) {
  settings.model = name;
  saveSettings();
  find("model").value = name;
  document.title = `${name} · deepseek-serve`;
  for (const element of document.querySelectorAll(".model-name")) element.textContent = name;
}

function start() {
  form.bind();
  bindPanel();
  bindList();
  bindComposer(send);
  setMode(settings.mode);
  const clicks = {
    stop,
    new: startAnew,
    "show-code": showCode,
    export: form.download,
    import: () => form.upload(imported, toast),
    theme: changeTheme,
  };
  for (const [id, work] of Object.entries(clicks)) find(id).addEventListener("click", () => work());
  for (const choice of document.querySelectorAll("input[name='mode']")) {
    choice.addEventListener("change", () => setMode(choice.value));
  }
  for (const example of document.querySelectorAll("[data-prompt]")) {
    example.addEventListener("click", () => {
      write(example.dataset.prompt);
      send();
    });
  }
  find("model").addEventListener("change", ({ target }) => showModel(target.value));
  find("theme").title = `Theme: ${window.theme.name}`;
  document.addEventListener("keydown", keys);
  document.addEventListener("key", () => listModels());
  addEventListener("pagehide", saveConversation);
  watch((load) => {
    if (load.status !== "offline") listModels(load.model);
    say(find("load-state").textContent);
  });
  if (!isNarrow()) focusDraft();
}

start();
