// The settings' form, the API key, export and import, and the dialog that shows the request as code.

import { copy, el } from "./dom.js";
import { asCurl, asPython, parse, toolNames } from "./request.js";
import { exportConversation, importConversation, key, saveSettings, settings } from "./state.js";

const EXAMPLES = {
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "The weather in a city, now.",
        parameters: {
          type: "object",
          properties: { city: { type: "string" }, unit: { type: "string", enum: ["celsius", "fahrenheit"] } },
          required: ["city"],
        },
      },
    },
  ],
  schema: {
    type: "object",
    properties: { name: { type: "string" }, age: { type: "integer" }, hobbies: { type: "array", items: { type: "string" } } },
    required: ["name", "age", "hobbies"],
    additionalProperties: false,
  },
};
const FIELDS = { tools: ["Tools", Array.isArray], schema: ["JSON schema", isObject], extra: ["Further parameters", isObject] };

const form = document.getElementById("settings");
const named = (name) => form.elements[name];

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Fill the form from the settings. */
export function fill() {
  for (const [name, value] of Object.entries(settings)) {
    const field = named(name);
    if (!field) continue;
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
  }
  listTools();
  refresh();
}

/** Have the form change the settings. */
export function bind() {
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    if (!(target.name in settings)) return;
    settings[target.name] = target.type === "checkbox" ? target.checked : target.value;
    if (target.name === "tools") listTools();
    refresh();
    saveSettings();
  });
  for (const source of form.querySelectorAll("[data-example]")) {
    source.addEventListener("click", () => {
      const field = named(source.dataset.example);
      field.value = JSON.stringify(EXAMPLES[source.dataset.example], null, 2);
      field.dispatchEvent(new Event("input", { bubbles: true }));
      field.focus();
    });
  }
  const keyField = document.getElementById("key");
  keyField.value = key.get();
  keyField.addEventListener("change", () => {
    key.set(keyField.value.trim());
    document.dispatchEvent(new Event("key"));
  });
  document.addEventListener("key", () => {
    keyField.value = key.get();
  });
}

/** Offer the names of the tools as choices. */
function listTools() {
  const names = toolNames(settings.tools);
  const choices = ["auto", "none", "required", ...names];
  if (!choices.includes(settings.tool_choice)) settings.tool_choice = "auto";
  named("tool_choice").replaceChildren(...choices.map((name) => el("option", { value: name }, names.includes(name) ? `only ${name}` : name)));
  named("tool_choice").value = settings.tool_choice;
}

/** Show what belongs to the mode and the format, and what is wrong with a field's JSON. */
function refresh() {
  document.documentElement.dataset.mode = settings.mode;
  document.getElementById("schema-part").hidden = settings.format !== "json_schema";
  document.getElementById("tools-part").hidden = !settings.tools.trim();
  for (const [name, [label, isRight]] of Object.entries(FIELDS)) {
    const hint = document.getElementById(`${name}-fault`);
    try {
      parse(settings[name], label, isRight);
      hint.textContent = "";
    } catch (error) {
      const text = error.message.replace(`${label}: `, "");
      hint.textContent = text[0].toUpperCase() + text.slice(1);
    }
    named(name).setAttribute("aria-invalid", hint.textContent !== "");
  }
}

/** Save the conversation as a file. */
export function download() {
  const url = URL.createObjectURL(new Blob([exportConversation()], { type: "application/json" }));
  el("a", { href: url, download: `conversation-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Read a conversation from a file that the reader picks. */
export function upload(onread, onfault) {
  const field = el("input", { type: "file", accept: "application/json,.json" });
  field.addEventListener("change", async () => {
    try {
      importConversation(await field.files[0].text());
      onread();
    } catch (error) {
      onfault(error instanceof SyntaxError ? "This file is not JSON." : error.message);
    }
  });
  field.click();
}

/** Show the request that would be sent next, as curl and as Python. */
export function showCode({ path, body }) {
  const dialog = document.getElementById("code");
  const needsKey = key.get() !== "";
  const texts = { curl: asCurl(path, body, needsKey), python: asPython(path, body, needsKey) };
  const text = document.getElementById("code-text");
  const show = () => {
    text.textContent = texts[dialog.querySelector("input[name='language']:checked").value];
  };
  dialog.oninput = show;
  const copier = document.getElementById("code-copy");
  copier.onclick = () => copy(text.textContent, copier);
  show();
  dialog.showModal();
}
