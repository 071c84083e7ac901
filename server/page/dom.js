// Making elements. Text only ever becomes text nodes; the page's policy (Trusted Types) forbids parsing it as HTML.

/** Make an element: props are properties, except `class`, `data` and names with a dash, which are attributes. */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An element of SVG with these attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** One of the icons that index.html defines. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#icon-${name}` }));
}

/** A quiet button: an icon with a name, whose text is shown or only read out. */
export function button(name, iconName, onclick, { quiet = true, text = true, ...props } = {}) {
  const label = text ? el("span", {}, name) : null;
  const kind = `${quiet ? "quiet" : "solid"}${text ? "" : " square"}`;
  return el(
    "button",
    { type: "button", class: kind, onclick, title: text ? undefined : name, "aria-label": text ? undefined : name, ...props },
    iconName ? icon(iconName) : null,
    label,
  );
}

/** Copy text, and say so on the button for a moment. */
export async function copy(text, source) {
  const done = await write(text);
  const label = source.querySelector("span");
  say(done ? "Copied." : "The browser did not allow copying.");
  if (!label || label.dataset.before) return;
  label.dataset.before = label.textContent;
  label.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => {
    label.textContent = label.dataset.before;
    delete label.dataset.before;
  }, 1500);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without HTTPS, on another machine's address, there is no clipboard API.
    const area = el("textarea", { value: text, class: "offscreen" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Tell screen readers. */
export function say(text) {
  document.getElementById("status").textContent = text;
}
