// Token probabilities: each token tinted by how likely it was, with what else the model considered.

import { el } from "./dom.js";

const tip = el("div", { class: "tip", id: "tip", role: "tooltip", hidden: true });

/** Show the tokens; those that are there already keep their elements. */
export function renderTokens(target, tokens) {
  if (!target.hasTokens) prepare(target);
  target.tokens = tokens;
  while (target.children.length > tokens.length) target.lastElementChild.remove();
  for (let index = target.children.length; index < tokens.length; index += 1) target.append(tokenElement(tokens[index], index));
  if (target.firstElementChild && !target.querySelector("[tabindex='0']")) target.firstElementChild.tabIndex = 0;
}

function tokenElement({ text, raw, logprob }, index) {
  const probability = Math.exp(logprob ?? 0);
  return el(
    "span",
    {
      class: `token p${probability >= 0.9 ? 0 : probability >= 0.6 ? 1 : probability >= 0.3 ? 2 : probability >= 0.1 ? 3 : 4}`,
      role: "option",
      "aria-selected": "false",
      "aria-label": `${spoken(raw || text)}, ${percent(probability)}`,
      tabIndex: -1,
      data: { index },
    },
    text,
  );
}

function prepare(target) {
  target.hasTokens = true;
  target.setAttribute("role", "listbox");
  target.setAttribute("aria-orientation", "horizontal");
  target.setAttribute("aria-label", "Tokens; the arrow keys go through them");
  target.addEventListener("pointerover", ({ target: token }) => show(target, token));
  target.addEventListener("pointerleave", hide);
  target.addEventListener("focusin", ({ target: token }) => select(target, token));
  target.addEventListener("focusout", hide);
  target.addEventListener("keydown", (event) => move(target, event));
}

function select(target, token) {
  for (const each of target.querySelectorAll("[tabindex='0']")) {
    each.tabIndex = -1;
    each.setAttribute("aria-selected", "false");
  }
  token.tabIndex = 0;
  token.setAttribute("aria-selected", "true");
  token.setAttribute("aria-describedby", tip.id);
  show(target, token);
}

function move(target, event) {
  const current = Number(document.activeElement?.dataset.index);
  const last = target.children.length - 1;
  const next = { ArrowRight: current + 1, ArrowDown: current + 1, ArrowLeft: current - 1, ArrowUp: current - 1, Home: 0, End: last };
  if (event.key === "Escape" && !tip.hidden) {
    hide();
    event.stopPropagation();
  }
  if (!(event.key in next)) return;
  event.preventDefault();
  target.children[Math.max(0, Math.min(last, next[event.key]))]?.focus();
}

function show(target, element) {
  const token = target.tokens[element.dataset?.index];
  if (!token) return;
  const name = token.raw || token.text;
  const isListed = token.top.some((other) => other.text === name);
  const rows = isListed ? token.top : [{ text: name, logprob: token.logprob }, ...token.top];
  tip.replaceChildren(
    ...rows.map(({ text, logprob }) => {
      const probability = Math.exp(logprob ?? 0);
      const bar = el("i", { class: "bar" });
      bar.style.setProperty("--share", probability.toFixed(4));
      return el("div", { class: text === name ? "chosen" : "" }, el("code", {}, visible(text)), bar, el("span", {}, percent(probability)));
    }),
  );
  if (!tip.isConnected) document.getElementById("main").append(tip);
  tip.hidden = false;
  place(element.getClientRects()[0]);
}

/** Above the token, or below where there is no room, and never beyond the window. */
function place(at) {
  if (!at) return;
  const { offsetWidth: width, offsetHeight: height } = tip;
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  tip.style.top = `${at.top - height - 8 < 8 ? at.bottom + 8 : at.top - height - 8}px`;
}

export function hide() {
  tip.hidden = true;
}

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
const spoken = (text) => (text === "\n" ? "line break" : text.trim() || "space");

function percent(probability) {
  const value = probability * 100;
  return `${value >= 99.95 ? "100" : value >= 0.1 ? value.toFixed(1) : "< 0.1"} %`;
}
