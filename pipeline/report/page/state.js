"use strict";
// The data, what is asked of it, and who wants to know when that changes.

const DATA = JSON.parse(byId("data").textContent);
const STYLES = [
  ["original", "original"],
  ["short", "short"],
  ["long", "descriptive"],
  ["blend", "in the blend"],
];

const state = {
  tab: "gallery",
  words: [], // of the search
  bars: new Map(), // column -> the bars that may be, a set
  reason: null, // of the dropped ones: "step/reason"
  differ: false, // of two runs: only what they say differently
};

const listeners = [];

function changed() {
  for (const listener of listeners) listener();
}

const fateOf = (row) => (row.step === null ? null : `${row.step}/${row.reason}`);
const styleName = (style) => (STYLES.find(([id]) => id === style) || [style, style])[1];

const haystacks = new Map();

function haystack(row) {
  if (!haystacks.has(row.uid)) {
    const texts = [...Object.values(row.texts), ...Object.values(row.other)].map((said) => said.text || "");
    haystacks.set(row.uid, [row.key, row.uid, row.reason || "", ...texts].join("\n").toLowerCase());
  }
  return haystacks.get(row.uid);
}

function fits(row) {
  for (const [column, bars] of state.bars) if (!bars.has(row.bars[column])) return false;
  return state.words.every((word) => haystack(row).includes(word));
}

/** The rows that the current tab shows. */
function found() {
  const rows = DATA.rows.filter(fits);
  if (state.tab === "dropped") {
    return rows.filter((row) => row.step !== null && (!state.reason || fateOf(row) === state.reason));
  }
  if (state.tab === "compare") {
    return rows.filter((row) => comparable(row).length && (!state.differ || comparable(row).some(([style]) => row.texts[style].text !== row.other[style].text)));
  }
  return rows.filter((row) => row.step === null);
}

/** The styles of which either run wrote something of a sample. */
function comparable(row) {
  return STYLES.filter(([style]) => style !== "original" && row.texts[style] && row.other[style] && (row.texts[style].text ?? row.other[style].text) !== null);
}

function toggle(column, bar) {
  const bars = state.bars.get(column) || new Set();
  if (!bars.delete(bar)) bars.add(bar);
  if (bars.size) state.bars.set(column, bars);
  else state.bars.delete(column);
  changed();
}

function clearAll() {
  state.bars.clear();
  state.words = [];
  state.reason = null;
  byId("search").value = "";
  changed();
}

/** What a bar holds, in words. */
function barName(column, bar) {
  if (bar === DATA.missing) return "missing";
  if (column.kind === "category") {
    const label = column.labels[bar];
    return label === null ? "other" : label === "" ? "(empty)" : label;
  }
  const from = column.low + bar * column.width;
  const last = bar === column.bars - 1;
  if (column.bars === 1) return column.min === column.max ? number(column.min) : `${number(column.min)} to ${number(column.max)}`;
  if (last && column.max > from + column.width) return `${number(tidy(from))} or more`;
  if (bar === 0 && column.min < from) return `below ${number(tidy(from + column.width))}`;
  if (column.whole && column.width === 1) return number(from);
  return `${number(tidy(from))} to ${number(tidy(from + column.width - (column.whole ? 1 : 0)))}`;
}

/** Without what binary fractions add to sums. */
const tidy = (value) => Number(value.toPrecision(10));
