// A short word at the foot of the page, which goes by itself.

import { button, el } from "./dom.js";

const SHOWN = 10_000; // milliseconds
const place = document.getElementById("toast");
let timer = null;

/** Say something, and offer to undo it if `undo` is given. */
export function toast(text, undo = null) {
  const undoing = () => {
    place.replaceChildren();
    undo();
  };
  place.replaceChildren(el("div", {}, text, undo && button("Undo", "undo", undoing)));
  clearTimeout(timer);
  timer = setTimeout(() => place.replaceChildren(), SHOWN);
}
