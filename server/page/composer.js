// The field in which messages are written: it grows with its text, and Enter sends.

const draft = document.getElementById("draft");
const sender = document.getElementById("send");

export const draftText = () => draft.value;

export function write(text) {
  draft.value = text;
  resize();
}

export function focusDraft() {
  draft.focus();
}

export function setHint(text) {
  draft.placeholder = text;
}

function resize() {
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight + 2}px`;
  sender.disabled = !draft.value.trim();
}

/** `onsend` is called for Enter and for the button. */
export function bindComposer(onsend) {
  draft.addEventListener("input", resize);
  draft.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    onsend();
  });
  document.getElementById("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    onsend();
  });
  resize();
}
