// The calls of tools in an answer, and the form in which the reader plays the tools.

import { button, el, icon } from "./dom.js";

/** Show the calls; under the last answer of a conversation, ask for their results. */
export function renderCalls(target, turn, version, isLive, actions) {
  const { toolCalls } = version;
  if (target.version !== version) {
    target.replaceChildren();
    Object.assign(target, { version, cards: [], form: undefined });
  }
  toolCalls.forEach((call, index) => {
    const card = (target.cards[index] ??= newCard(target));
    card.name.textContent = call.name;
    const text = pretty(call.arguments, isLive);
    if (card.code.textContent !== text) card.code.textContent = text;
  });
  const isAsked = toolCalls.length > 0 && !isLive && actions.isLast(turn);
  if (isAsked && !target.form) target.form = answerForm(target, turn, version, actions);
  if (!isAsked && target.form) {
    target.form.remove();
    target.form = undefined;
  }
}

function newCard(target) {
  const name = el("span");
  const code = el("code");
  const pre = el("pre", { tabIndex: 0, role: "group", "aria-label": "Arguments" }, code);
  target.append(el("section", { class: "call" }, el("h3", {}, icon("tool"), "Call of ", name), pre));
  return { name, code };
}

function answerForm(target, turn, version, actions) {
  const fields = version.toolCalls.map((call) => el("textarea", { rows: 2, required: true, placeholder: '{"result": ...}', "aria-label": `Result of ${call.name}` }));
  const labels = version.toolCalls.map((call, index) => el("label", {}, el("span", {}, "What ", el("b", {}, call.name), " returns"), fields[index]));
  const form = el("form", { class: "results" }, labels, el("div", { class: "row" }, button("Send results", "send", null, { quiet: false, type: "submit" })));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const results = version.toolCalls.map((call, index) => ({ kind: "tool", callId: call.id, name: call.name, text: fields[index].value }));
    actions.answerCalls(turn, results);
  });
  target.append(form);
  return form;
}

/** Arguments are text that a model wrote: laid out if they are JSON, else as they are. */
function pretty(text, isLive) {
  if (isLive) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
