"use strict";
// Elements, numbers and text. Whatever comes from the data becomes a text node, never markup.

function el(name, properties, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") element.className = value;
    else if (key === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (key === "css") {
      for (const [style, v] of Object.entries(value)) element.style.setProperty(style, v);
    } else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = (id) => document.getElementById(id);

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const REAL = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return WHOLE.format(value);
  return Math.abs(value) >= 1e6 ? SHORT.format(value) : REAL.format(value);
}

function percent(part, whole) {
  if (!whole) return "–";
  const share = (100 * part) / whole;
  if (share > 0 && share < 0.1) return "< 0.1 %";
  return `${share.toFixed(share < 10 || share > 99 ? 1 : 0)} %`;
}

function plural(count, noun) {
  return `${WHOLE.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Text with the given words marked, as nodes. */
function marked(text, words) {
  if (!words.length) return [text];
  const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return text
    .split(new RegExp(`(${escaped.join("|")})`, "giu"))
    .map((piece, i) => (i % 2 ? el("mark", {}, piece) : piece));
}

/** Words of `text` that are not in `other`, in their order, marked. */
function differing(text, other) {
  const pieces = text.split(/(\s+)/);
  const theirs = other.split(/\s+/).filter(Boolean);
  const ours = pieces.filter((_, i) => i % 2 === 0);
  const same = common(ours, theirs);
  return pieces.map((piece, i) => (i % 2 || !piece || same.has(i / 2) ? piece : el("mark", {}, piece)));
}

/** Places in `a` of a longest common subsequence with `b`. */
function common(a, b) {
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      rows[i][j] = a[i] === b[j] ? rows[i + 1][j + 1] + 1 : Math.max(rows[i + 1][j], rows[i][j + 1]);
    }
  }
  const places = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      places.add(i);
      i++;
      j++;
    } else if (rows[i + 1][j] >= rows[i][j + 1]) i++;
    else j++;
  }
  return places;
}

/** One tab stop for many buttons: arrow keys, Home and End move among them. */
function roving(container, selector) {
  const items = () => [...container.querySelectorAll(selector)].filter((item) => !item.hidden);
  const stop = (chosen) => items().forEach((item) => (item.tabIndex = item === chosen ? 0 : -1));
  container.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined || !all[to]) return;
    event.preventDefault();
    event.stopPropagation();
    stop(all[to]);
    all[to].focus();
  });
  container.addEventListener("focusin", (event) => items().includes(event.target) && stop(event.target));
  stop(items().find((item) => item.getAttribute("aria-selected") === "true") || items()[0]);
}

let forget = 0;

/** A line at the edge of the page that goes away by itself. */
function tell(text) {
  byId("said").textContent = text;
  clearTimeout(forget);
  forget = setTimeout(() => (byId("said").textContent = ""), 2000);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "unseen" });
    area.value = text;
    const before = document.activeElement;
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    before?.focus();
  }
  tell(`Copied ${text}`);
}
