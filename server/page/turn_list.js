// The list of turns on the page, and its scrolling: it stays at the end if the reader is there.

import { turns } from "./state.js";
import { viewOf } from "./transcript.js";

const [transcript, list, toEndButton] = ["transcript", "turns", "to-end"].map((id) => document.getElementById(id));
let views = new Map(); // by turn; views of turns that stay are kept
let isScheduled = false;

/** Show the turns of the mode as they are now. */
export function render(actions) {
  const all = turns();
  views = new Map(all.map((turn) => [turn, views.get(turn) ?? viewOf(turn, actions)]));
  const elements = [...views.values()].map((view) => view.element);
  if (elements.some((element, index) => list.children[index] !== element) || list.children.length !== elements.length) {
    list.replaceChildren(...elements);
  }
  for (const view of views.values()) view.update();
  document.documentElement.classList.toggle("empty", all.length === 0);
}

/** Show what has come for an answer, once a frame. */
export function schedule(answer) {
  if (isScheduled) return;
  isScheduled = true;
  const paint = () => {
    isScheduled = false;
    keepEnd(() => views.get(answer)?.update());
  };
  if (document.hidden) setTimeout(paint, 200);
  else requestAnimationFrame(paint);
}

export function keepEnd(change) {
  const wasAtEnd = isAtEnd();
  change();
  if (wasAtEnd) toEnd();
  else toEndButton.hidden = isAtEnd();
}

const isAtEnd = () => transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 60;

export function toEnd() {
  transcript.scrollTop = transcript.scrollHeight;
  toEndButton.hidden = true;
}

export function bindList() {
  toEndButton.addEventListener("click", toEnd);
  transcript.addEventListener("scroll", () => {
    if (isAtEnd()) toEndButton.hidden = true;
  });
}
