// The chosen theme, set before the first paint; "auto" follows the system.
"use strict";

const theme = (() => {
  const NAMES = ["auto", "light", "dark"];
  const KEY = "deepseek-serve.theme";
  let current = "auto";

  function apply(name) {
    current = NAMES.includes(name) ? name : "auto";
    if (current === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = current;
  }

  try {
    apply(localStorage.getItem(KEY));
  } catch {
    // Storage is blocked: the theme is the system's.
  }

  return {
    get name() {
      return current;
    },
    next() {
      apply(NAMES[(NAMES.indexOf(current) + 1) % NAMES.length]);
      try {
        localStorage.setItem(KEY, current);
      } catch {
        // The choice holds until the page is left.
      }
      return current;
    },
  };
})();

window.theme = theme;
