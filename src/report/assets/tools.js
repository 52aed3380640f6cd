"use strict";
// Small tools: elements, numbers, tables, differences of texts. Text goes into the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

/// An element with attributes; functions among them become listeners. Children are elements or texts.
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/// The same for a drawing.
function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== ""));
  return made;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/// A number with four digits that count.
function short(value) {
  if (!isNumber(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

const signed = (value, digits = 4) => (isNumber(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits) : "–");
const fixed = (value, digits = 4) => (isNumber(value) ? value.toFixed(digits) : "–");
const percent = (value, digits = 1) => (isNumber(value) ? (100 * value).toFixed(digits) + "%" : "–");
const whole = (value) => (isNumber(value) ? value.toLocaleString("en") : "–");

function bytes(value) {
  if (!isNumber(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit + 1 < units.length; unit += 1) value /= 1024;
  return (value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1)) + " " + units[unit];
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes + " min " + Math.round(seconds % 60) + " s";
  return Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
}

/// A moment as people of this machine write it.
function moment(text) {
  const time = new Date(text);
  return Number.isNaN(time.getTime()) ? String(text ?? "–") : time.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

const counted = (count, noun) => whole(count) + " " + noun + (count === 1 ? "" : "s");

/// A table that can be scrolled sideways with the keyboard. `rows` are lists of texts or elements; the first cell heads its row.
function table(caption, names, rows, kind = "") {
  const body = rows.map((cells) => element("tr", {}, cells.map((cell, index) => {
    const heads = index === 0;
    return element(heads ? "th" : "td", heads ? { scope: "row" } : {}, cell instanceof Node ? cell : String(cell));
  })));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", { class: kind },
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, names.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, body)));
}

/// Something to unfold, which is made when it is unfolded first.
function folded(summary, make) {
  const made = element("details", {}, element("summary", {}, summary));
  made.addEventListener("toggle", () => { if (made.open && made.childElementCount === 1) made.append(...[make()].flat()); });
  return made;
}

/// Buttons of which one is chosen.
function choice(label, options, chosen, change) {
  const buttons = options.map(([value, name]) => element("button", {
    type: "button", "aria-pressed": String(value === chosen),
    click: (event) => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === event.currentTarget)));
      change(value);
    },
  }, name));
  return element("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/// The pieces of a text that are compared: words, spaces, signs; Chinese characters one by one.
const pieces = (text) => text.match(/\p{Script=Han}|[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}\s]/gu) ?? [];
const MOST_COMPARED = 4e5;

/// Two texts as lists of `[is different, text]`, by their longest common part.
function difference(before, after) {
  const [a, b] = [pieces(before), pieces(after)];
  if (a.length * b.length > MOST_COMPARED) return [[[false, before]], [[false, after]]];
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const [left, right] = [[], []];
  const add = (list, differs, text) => {
    const last = list[list.length - 1];
    if (last && last[0] === differs) last[1] += text; else list.push([differs, text]);
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add(left, false, a[i]); add(right, false, b[j]); i += 1; j += 1;
    } else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
      add(left, true, a[i]); i += 1;
    } else {
      add(right, true, b[j]); j += 1;
    }
  }
  return [left, right];
}

/// A list of `difference` as text, different parts in elements `name`.
function marked(parts, name) {
  const whole = [];
  parts.forEach(([differs, text], index) => {
    // A space between two words that differ belongs to them.
    const joins = !differs && !text.trim() && index > 0 && index + 1 < parts.length;
    const last = whole[whole.length - 1];
    if (last && last[0] === (differs || joins)) last[1] += text; else whole.push([differs || joins, text]);
  });
  return whole.map(([differs, text]) => (differs && text.trim() ? element(name, {}, text) : text));
}

/// The part of Markdown that model cards have: headings, paragraphs, blocks of code.
function markdown(text, level) {
  const made = [];
  let block = null;
  for (const line of text.split("\n")) {
    if (line.startsWith("```")) {
      if (block) { made.push(element("pre", { tabindex: 0 }, element("code", {}, block.join("\n")))); block = null; } else block = [];
    } else if (block) block.push(line);
    else if (line.startsWith("### ")) made.push(element("h" + level, {}, line.slice(4)));
    else if (line.trim()) made.push(element("p", {}, line.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part))));
  }
  return made;
}

/// Light, dark, or as the system has it, for this page as long as it is open.
function themes() {
  const modes = ["", "light", "dark"];
  const names = { "": "as the system", light: "light", dark: "dark" };
  let mode = 0;
  const button = element("button", { type: "button", class: "theme", click: () => {
    mode = (mode + 1) % modes.length;
    document.documentElement.dataset.theme = modes[mode];
    button.textContent = "Colours: " + names[modes[mode]];
  } }, "Colours: as the system");
  return button;
}

/// The text of a token so that its borders and line ends are seen.
const visible = (text) => text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
