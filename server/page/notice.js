// What went wrong with an answer, said kindly, with what can be done about it.

import { button, el, icon } from "./dom.js";
import { key } from "./state.js";

/** Fill `target` with the notice of this version, or empty it. */
export function notice(target, turn, version, actions) {
  const { waiting, problem } = version;
  const state = waiting ? `waiting ${waiting.until}` : problem ? `${problem.kind} ${problem.title} ${problem.detail}` : "";
  if (target.dataset.state === state) return;
  target.dataset.state = state;
  clearInterval(target.timer);
  if (waiting) target.replaceChildren(waitingNotice(target, waiting));
  else if (problem) target.replaceChildren(problemNotice(turn, version, problem, actions));
  else target.replaceChildren();
}

function waitingNotice(target, waiting) {
  const clock = el("span", { class: "clock" });
  const tick = () => {
    const seconds = Math.max(0, Math.ceil((waiting.until - Date.now()) / 1000));
    clock.textContent = seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again.";
  };
  tick();
  target.timer = setInterval(tick, 500);
  const text = el("div", {}, el("strong", {}, waiting.title), el("p", {}, waiting.detail, " ", clock));
  return el("div", { class: "notice calm" }, icon("wait"), text);
}

function problemNotice(turn, version, problem, actions) {
  const retry = button("Try again", "again", () => actions.retry(turn), { quiet: false });
  const text = el("div", {}, el("strong", {}, problem.title), el("p", {}, problem.detail));
  if (version.text && problem.kind === "broken") text.append(el("p", {}, "What had arrived is kept above, and can be continued."));
  let choices = [retry];
  if (problem.kind === "key") return el("div", { class: "notice", role: "alert" }, icon("key"), text, keyForm(() => actions.retry(turn)));
  if (problem.kind === "context" && turn.kind === "answer") {
    choices = [button("Leave out the oldest turns", null, () => actions.shorten(turn), { quiet: false }), button("New conversation", null, actions.renew)];
  }
  if (problem.kind === "settings" || problem.kind === "refused") choices.push(button("Settings", "settings", actions.openSettings));
  return el("div", { class: "notice", role: "alert" }, icon("warning"), text, el("div", { class: "row" }, choices));
}

function keyForm(onsave) {
  const field = el("input", { type: "password", autocomplete: "off", placeholder: "API key", required: true, "aria-label": "API key" });
  const form = el("form", { class: "row key" }, field, button("Use it", null, null, { quiet: false, type: "submit" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(field.value.trim());
    document.dispatchEvent(new Event("key"));
    onsave();
  });
  return form;
}
