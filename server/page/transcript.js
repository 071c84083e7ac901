// The turns as elements: each view makes its parts once, and `update` fills them with what the turn now holds.

import { button, copy, el, icon } from "./dom.js";
import { notice } from "./notice.js";
import { renderMarkdown } from "./markdown.js";
import { renderTokens } from "./tokens.js";
import { renderCalls } from "./tool_calls.js";

/** A view {element, update} of a turn. `actions` are what its buttons do: conversation.js has them. */
export function viewOf(turn, actions) {
  if (turn.kind === "user") return userView(turn, actions);
  if (turn.kind === "tool") return toolView(turn);
  return answerView(turn, actions);
}

function userView(turn, actions) {
  const bubble = el("div", { class: "bubble", dir: "auto" }, turn.text);
  const copier = button("Copy", "copy", () => copy(turn.text, copier));
  const buttons = el("div", { class: "actions" }, button("Edit", "edit", edit), copier);
  const name = heading("You");
  const element = el("article", { class: "turn user" }, name, bubble, buttons);

  function edit() {
    const field = el("textarea", { value: turn.text, dir: "auto", "aria-label": "Edit the message" });
    const form = el("form", { class: "editor" }, field, el("div", { class: "row" }, button("Cancel", null, close), button("Send", null, null, { quiet: false, type: "submit" })));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) actions.edit(turn, field.value);
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
    });
    element.replaceChildren(name, form);
    field.focus();
  }

  function close() {
    element.replaceChildren(name, bubble, buttons);
    buttons.firstElementChild.focus();
  }

  return { element, update() {} };
}

/** By headings, screen readers go from turn to turn. */
const heading = (text) => el("h2", { class: "offscreen" }, text);

function toolView(turn) {
  const text = el("pre", { class: "result", dir: "auto", tabIndex: 0, role: "group", "aria-label": "Result" }, turn.text);
  const element = el("article", { class: "turn tool" }, el("h2", {}, icon("tool"), turn.name, " returned"), text);
  return { element, update() {} };
}

function answerView(turn, actions) {
  const isCompletion = turn.kind === "completion";
  const element = el("article", { class: `turn answer ${turn.kind}` });
  const reasoning = reasoningView();
  const prompt = isCompletion ? el("span", { class: "prompt" }, turn.prompt) : null;
  const text = el(isCompletion ? "span" : "div", { class: isCompletion ? "plain" : "markdown" });
  const tokens = el(isCompletion ? "span" : "div", { class: "tokens" });
  const body = el("div", { class: "body", dir: "auto" }, prompt, text, tokens);
  const calls = el("div", { class: "calls" });
  const trouble = el("div", { class: "trouble" });
  const { footer, updateFooter } = footerView(turn, actions, () => update());
  element.append(heading(isCompletion ? "Completion" : "Answer"), reasoning.element, body, calls, trouble, footer);
  let shown = null;

  function update() {
    const version = turn.versions[turn.active];
    if (!version) return;
    if (shown !== version) {
      for (const part of [text, tokens]) part.replaceChildren();
      text.blocks = undefined;
      shown = version;
    }
    const isLive = actions.isLive(turn);
    const isTokens = version.tokens.length > 0 && !turn.asText;
    element.classList.toggle("live", isLive);
    element.classList.toggle("thinking", isLive && !version.text && !version.reasoning && version.toolCalls.length === 0 && !version.waiting);
    reasoning.update(version, isLive);
    text.hidden = isTokens;
    tokens.hidden = !isTokens;
    if (isTokens) renderTokens(tokens, version.tokens);
    else if (isCompletion) text.textContent = version.text;
    else renderMarkdown(text, version.text.trimStart().startsWith("{") ? `\`\`\`json\n${version.text}` : version.text);
    renderCalls(calls, turn, version, isLive, actions);
    notice(trouble, turn, version, actions);
    updateFooter(version, isLive);
  }

  update();
  return { element, update };
}

function reasoningView() {
  const title = el("span", {}, "Thinking");
  const text = el("div", { class: "thought", dir: "auto" });
  const element = el("details", { class: "reasoning", hidden: true }, el("summary", {}, icon("chevron"), title), text);
  let isTouched = false; // the reader has opened or closed it
  element.firstElementChild.addEventListener("click", () => {
    isTouched = true;
  });
  return {
    element,
    update(version, isLive) {
      element.hidden = !version.reasoning;
      if (element.hidden) return;
      const isThinking = isLive && !version.text && version.toolCalls.length === 0;
      element.classList.toggle("now", isThinking);
      title.textContent = isThinking ? "Thinking" : version.thinkTime ? `Thought for ${duration(version.thinkTime)}` : "Thoughts";
      if (text.textContent !== version.reasoning) text.textContent = version.reasoning;
      if (!isTouched) element.open = isThinking;
    },
  };
}

function footerView(turn, actions, update) {
  const figures = el("p", { class: "figures" });
  const count = el("span", { class: "count" });
  const turnTo = (step) => () => {
    turn.active = Math.max(0, Math.min(turn.versions.length - 1, turn.active + step));
    update();
    actions.changed();
  };
  const back = button("Previous version", "back", turnTo(-1), { text: false });
  const forward = button("Next version", "forward", turnTo(1), { text: false });
  const versions = el("div", { class: "versions", role: "group", "aria-label": "Versions" }, back, count, forward);
  const copier = button("Copy", "copy", () => copy(turn.versions[turn.active].text, copier));
  const again = button("Again", "again", () => actions.regenerate(turn), { title: "Ask for another answer" });
  const view = button("Text", null, () => {
    turn.asText = !turn.asText;
    update();
  });
  const more = button("Continue", "forward", () => actions.resume(turn), { title: "Ask for more of this text" });
  const edit = turn.kind === "completion" ? button("Edit", "edit", () => actions.editPrompt(turn)) : null;
  const buttons = el("div", { class: "actions" }, versions, again, more, edit, copier, view);
  return {
    footer: el("footer", {}, buttons, figures),
    updateFooter(version, isLive) {
      buttons.hidden = isLive;
      versions.hidden = turn.versions.length < 2;
      count.textContent = `${turn.active + 1} / ${turn.versions.length}`;
      back.disabled = turn.active === 0;
      forward.disabled = turn.active === turn.versions.length - 1;
      again.hidden = version.problem !== null; // its notice has a button for it
      copier.hidden = !version.text;
      more.hidden = !version.text || version.toolCalls.length > 0 || (turn.kind === "answer" && version.finish === "stop");
      view.hidden = version.tokens.length === 0;
      view.querySelector("span").textContent = turn.asText ? "Probabilities" : "Plain text";
      figures.textContent = describe(version, isLive);
    },
  };
}

const ENDS = { length: "reached max tokens", stopped: "stopped", content_filter: "filtered" };

/** The figures of an answer: tokens, speed, time to first token, and why it ended unless it simply did. */
function describe({ stats, finish, problem }, isLive) {
  if (!stats?.ttft) return !isLive && finish === "stopped" ? "stopped" : "";
  const parts = [];
  if (stats.tokens) parts.push(`${stats.tokens.toLocaleString("en")} token${stats.tokens === 1 ? "" : "s"}`);
  if (stats.rate) parts.push(`${stats.rate.toFixed(stats.rate < 10 ? 1 : 0)} tokens/s`);
  parts.push(`first after ${duration(stats.ttft)}`);
  if (!isLive && stats.prompt) parts.push(`prompt ${stats.prompt.toLocaleString("en")}${stats.cached ? ` (${stats.cached.toLocaleString("en")} cached)` : ""}`);
  if (!isLive && !problem && ENDS[finish]) parts.push(ENDS[finish]);
  return parts.join("  ·  ");
}

const duration = (milliseconds) => (milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`);
