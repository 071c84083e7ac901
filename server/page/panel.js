// The panel of settings: beside the conversation, or over it where the window is narrow.

const [panel, main, opener, closer] = ["panel", "main", "toggle-panel", "close-panel"].map((id) => document.getElementById(id));
const narrow = matchMedia("(max-width: 60rem)");

export const isNarrow = () => narrow.matches;
export const isOverPage = () => narrow.matches && !panel.inert;

export function showPanel(isOpen) {
  document.documentElement.classList.toggle("panel-open", isOpen);
  opener.setAttribute("aria-expanded", isOpen);
  panel.inert = !isOpen;
  main.inert = isOpen && narrow.matches;
  if (isOpen && narrow.matches) closer.focus();
}

export function closePanel() {
  showPanel(false);
  opener.focus();
}

export function bindPanel() {
  showPanel(!narrow.matches);
  narrow.addEventListener("change", () => showPanel(!narrow.matches));
  opener.addEventListener("click", () => showPanel(panel.inert));
  closer.addEventListener("click", closePanel);
}
