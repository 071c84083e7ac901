// Markdown of models' answers, as elements. Text becomes text nodes alone, and links lead to http(s) only.
// Every pattern below stops at the next character that begins it, so no text takes more than linear time.

import { button, copy, el } from "./dom.js";

const MAX_DEPTH = 6; // of lists and quotes in one another
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const INLINE =
  /(?<!`)(`{1,3})(?!`)([^`]+)\1(?!`)|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^[\]\n]{1,500})\]\((https?:\/\/[^\s()<>]{1,2000})\)|\b(https?:\/\/[^\s()<>"'`*]{1,2000})/g;

/** Show a text in an element; blocks that have not changed since the last call keep their elements. */
export function renderMarkdown(target, text) {
  const blocks = splitBlocks(text.split("\n"));
  const before = target.blocks ?? [];
  blocks.forEach((lines, index) => {
    const source = lines.join("\n");
    if (before[index] === source) return;
    const element = renderBlock(lines, 0);
    if (target.children[index]) target.children[index].replaceWith(element);
    else target.append(element);
  });
  while (target.children.length > blocks.length) target.lastElementChild.remove();
  target.blocks = blocks.map((lines) => lines.join("\n"));
}

/** Split lines into blocks: fences, headings, rules, quotes, lists, tables, paragraphs. */
function splitBlocks(lines) {
  const blocks = [];
  let index = 0;
  while (index < lines.length) {
    if (!lines[index].trim()) {
      index += 1;
      continue;
    }
    const end = endOfBlock(lines, index);
    blocks.push(lines.slice(index, end));
    index = end;
  }
  return blocks;
}

function endOfBlock(lines, start) {
  const fence = FENCE.exec(lines[start]);
  if (fence) {
    const end = lines.findIndex((line, at) => at > start && closes(line, fence[1]));
    return end < 0 ? lines.length : end + 1;
  }
  if (HEADING.test(lines[start]) || RULE.test(lines[start])) return start + 1;
  if (QUOTE.test(lines[start])) return endWhile(lines, start, (line) => QUOTE.test(line));
  if (ITEM.test(lines[start])) return endOfList(lines, start);
  return endWhile(lines, start, (line) => line.trim() && !interrupts(line));
}

const isNumber = (marker) => marker.length > 1;
const closes = (line, fence) => line.trim().startsWith(fence) && /^ {0,3}([`~])\1*\s*$/.test(line);
const interrupts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function endWhile(lines, start, goesOn) {
  let end = start + 1;
  while (end < lines.length && goesOn(lines[end])) end += 1;
  return end;
}

function endOfList(lines, start) {
  const [, indent, marker] = ITEM.exec(lines[start]);
  let end = start + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const item = RULE.test(line) ? null : ITEM.exec(line);
    if (item && item[1].length <= indent.length + 1 && isNumber(item[2]) !== isNumber(marker)) return end;
    if (item) continue;
    if (!line.trim()) {
      const next = lines[end + 1] ?? "";
      if (ITEM.test(next) || (/^ {2,}/.test(next) && next.trim())) continue;
      return end;
    }
    if (/^ {2,}/.test(line)) continue;
    if (interrupts(line) || !lines[end - 1].trim()) return end;
  }
  return end;
}

function renderBlock(lines, depth) {
  const [first] = lines;
  const fence = FENCE.exec(first);
  if (fence) return codeBlock(lines, fence);
  const heading = HEADING.exec(first);
  if (heading) return el(`h${Math.min(heading[1].length + 2, 6)}`, {}, inline(heading[2]));
  if (RULE.test(first)) return el("hr");
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(first)) {
      return el("blockquote", {}, renderAll(lines.map((line) => line.replace(QUOTE, "")), depth + 1));
    }
    if (ITEM.test(first)) return list(lines, depth);
    if (lines.length > 1 && first.includes("|") && isTableRule(lines[1])) return table(lines);
  }
  return el("p", {}, inline(lines.join("\n")));
}

const renderAll = (lines, depth) => splitBlocks(lines).map((block) => renderBlock(block, depth));

function codeBlock(lines, fence) {
  const isClosed = lines.length > 1 && closes(lines.at(-1), fence[1]);
  const code = lines.slice(1, isClosed ? -1 : undefined).join("\n");
  const language = fence[2].trim().split(/\s/)[0].slice(0, 24);
  const copier = button("Copy", "copy", () => copy(code, copier));
  return el(
    "figure",
    { class: "code" },
    el("figcaption", {}, el("span", {}, language || "text"), copier),
    el("pre", { tabIndex: 0, role: "group", "aria-label": "Code" }, el("code", {}, code)),
  );
}

/** A list; an item's further lines, and items that are indented deeper, are the item's own blocks. */
function list(lines, depth) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const isOrdered = isNumber(marker);
  const items = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && (items.length === 0 || match[1].length <= indent.length + 1)) items.push([line.slice(match[0].length)]);
    else items.at(-1).push(line);
  }
  const element = el(isOrdered ? "ol" : "ul", isOrdered ? { start: Number.parseInt(marker, 10) } : {});
  for (const [first, ...rest] of items) {
    const width = Math.min(...rest.filter((line) => line.trim()).map((line) => line.search(/\S/)), 6);
    const inner = [first, ...rest.map((line) => line.slice(Math.min(width, line.search(/\S|$/))))];
    const blocks = renderAll(inner, depth + 1);
    const opening = blocks[0]?.tagName === "P" ? [...blocks.shift().childNodes] : [];
    element.append(el("li", {}, opening, blocks));
  }
  return element;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
const isTableRule = (line) => line.includes("-") && cells(line).every((cell) => /^:?-+:?$/.test(cell));

function table(lines) {
  const head = cells(lines[0]);
  const row = (line) => {
    const found = cells(line);
    return el("tr", {}, head.map((_, index) => el("td", {}, inline(found[index] ?? ""))));
  };
  return el(
    "div",
    { class: "table", tabIndex: 0, role: "group", "aria-label": "Table" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, head.map((cell) => el("th", { scope: "col" }, inline(cell))))),
      el("tbody", {}, lines.slice(2).map(row)),
    ),
  );
}

/** Code, bold, italics, links; everything else is text. */
function inline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, , code, bold, italic, label, target, bare] = match;
    parts.push(text.slice(end, match.index));
    end = match.index + whole.length;
    if (code !== undefined) parts.push(el("code", {}, code.length > 2 ? code.replace(/^ (.*) $/s, "$1") : code));
    else if (bold !== undefined) parts.push(el("strong", {}, inline(bold)));
    else if (italic !== undefined) parts.push(el("em", {}, inline(italic)));
    else if (target !== undefined) parts.push(link(target, label, whole));
    else {
      const address = bare.replace(/[.,;:!?]+$/, "");
      end -= bare.length - address.length;
      parts.push(link(address, address, address));
    }
  }
  parts.push(text.slice(end));
  return parts.filter((part) => part !== "");
}

function link(target, label, whole) {
  const url = URL.canParse(target) ? new URL(target) : null;
  if (!url || !["http:", "https:"].includes(url.protocol)) return whole;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", title: url.href }, label);
}
