"use strict";
// Tabs, search, filters, keys, theme, and the dialog with everything about one sample.

const TABS = [
  ["gallery", "Gallery", (panel) => { const listing = new Listing(panel, galleryCard); return { listing, show: (rows) => listing.show(rows) }; }],
  ["dropped", "Dropped by reason", droppedPanel],
  DATA.runs.compare ? ["compare", "Two runs", comparePanel] : null,
  DATA.style.length ? ["style", "Style drift", stylePanel] : null,
].filter(Boolean);
const KEYS = [
  ["/", "search"],
  ["j k or arrows", "next, previous sample"],
  ["Enter", "everything about a sample; arrows go on to the next"],
  ["c", "copy the key of the sample"],
  [`1 to ${TABS.length}`, "views"],
  ["x", "clear search and filters"],
  ["t", "light, dark, or as the system"],
  ["Escape", "close, or leave the search"],
];
const panels = new Map();

function openTab(id) {
  state.tab = id;
  for (const [name] of TABS) {
    const chosen = name === id;
    const tab = byId(`tab-${name}`);
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(`panel-${name}`).hidden = !chosen;
  }
  document.body.dataset.tab = id;
  changed();
}

function drawTabs() {
  for (const [id, name, make] of TABS) {
    byId("tabs").append(el("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, "aria-selected": String(id === "gallery"), on: { click: () => openTab(id) } }, name));
    const panel = el("section", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}` });
    byId("panels").append(panel);
    panels.set(id, make(panel));
  }
  roving(byId("tabs"), "[role=tab]");
}

function showFound() {
  const rows = state.tab === "style" ? [] : found();
  const shown = { gallery: "kept", dropped: "dropped", compare: "captioned by both runs" }[state.tab];
  const of = DATA.rows.filter((row) => (state.tab === "gallery" ? row.step === null : state.tab === "dropped" ? row.step !== null : comparable(row).length)).length;
  byId("count").textContent = state.tab === "style" ? "" : `${WHOLE.format(rows.length)} of ${plural(of, "sample")} on this page, ${shown}`;
  panels.get(state.tab).show(rows);
  const chips = [];
  for (const [column, bars] of state.bars) {
    for (const bar of bars) {
      const name = `${DATA.columns[column].name}: ${barName(DATA.columns[column], bar)}`;
      chips.push(el("button", { type: "button", class: "chip on", "aria-label": `Remove the filter ${name}`, on: { click: () => toggle(column, bar) } }, el("bdi", {}, name), el("span", { "aria-hidden": "true" }, "×")));
    }
  }
  if (chips.length || state.words.length) chips.push(el("button", { type: "button", class: "chip", id: "clear", on: { click: clearAll } }, "clear all"));
  byId("filters").replaceChildren(...chips);
}

let inDetail = null;

function openDetail(row) {
  inDetail = row;
  const dialog = byId("detail");
  const facts = [
    ["uid", row.uid],
    ["shard", row.shard],
    ["fate", row.step === null ? "kept" : `${row.step}: ${row.reason}`],
    ["in the blend", row.source],
    ["drawn by the blend", row.drawn],
    ...DATA.columns.map((column, i) => [column.kind === "words" ? `${column.name}, words` : column.name, row.values[i]]),
  ].filter(([, value]) => value !== null && value !== undefined);
  dialog.replaceChildren(
    el("div", { class: "dialog-head" }, el("h2", { id: "detail-title" }, "Sample ", el("code", {}, row.key)), el("button", { type: "button", class: "plain", on: { click: () => dialog.close() } }, "Close")),
    el("div", { class: "detail" },
      el("div", {}, picture(row, true), keyLine(row)),
      el("div", { class: "captions of-1" }, captionCells(row))),
    el("dl", { class: "facts" }, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, el("bdi", {}, typeof value === "number" ? number(value) : String(value)))])),
  );
  if (!dialog.open) dialog.showModal();
}

function stepDetail(by) {
  const rows = panels.get(state.tab).listing?.rows || [];
  const next = rows[rows.indexOf(inDetail) + by];
  if (next) openDetail(next);
}

function showKeys() {
  const dialog = byId("keys");
  dialog.replaceChildren(
    el("div", { class: "dialog-head" }, el("h2", { id: "keys-title" }, "Keys"), el("button", { type: "button", class: "plain", on: { click: () => dialog.close() } }, "Close")),
    el("dl", { class: "facts" }, KEYS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
  );
  dialog.showModal();
}

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  try {
    localStorage.setItem("recaption-theme", theme);
  } catch {} // some browsers keep nothing for files
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
}

function keptTheme() {
  try {
    return THEMES.includes(localStorage.getItem("recaption-theme")) ? localStorage.getItem("recaption-theme") : "auto";
  } catch {
    return "auto";
  }
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, textarea, select");
  if (byId("detail").open) {
    const by = { ArrowRight: 1, ArrowDown: 1, j: 1, ArrowLeft: -1, ArrowUp: -1, k: -1 }[event.key];
    if (by) event.preventDefault();
    if (by) stepDetail(by);
    return;
  }
  if (byId("keys").open) return;
  if (typing) {
    if (event.key === "Escape" && event.target.id === "search") {
      event.target.value ? search("") : event.target.blur();
      event.preventDefault();
    }
    return;
  }
  const at = event.target.closest(".card");
  const act = {
    "/": () => byId("search").focus(),
    "?": showKeys,
    t: nextTheme,
    x: clearAll,
    j: () => step(1),
    k: () => step(-1),
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    c: at && (() => copy(rowOf(at).key)),
    Enter: event.target === at && at && (() => openDetail(rowOf(at))),
  }[event.key];
  const tab = TABS[Number(event.key) - 1];
  if (event.key.startsWith("Arrow") && !at && event.target !== document.body && event.target.id !== "main") return;
  if (act) act();
  else if (tab) openTab(tab[0]);
  if (act || tab) event.preventDefault();
}

const rowOf = (element) => DATA.rows.find((row) => row.uid === element.dataset.uid);
const step = (by) => panels.get(state.tab).listing?.step(by);

function search(text) {
  byId("search").value = text;
  state.words = text.toLowerCase().split(/\s+/).filter(Boolean);
  changed();
}

let pause = 0;
setTheme(keptTheme());
byId("name").textContent = DATA.name;
document.title = `${DATA.name} · Recaption report`;
byId("about").textContent = [
  DATA.runs.captions && `captions ${DATA.runs.captions}`,
  DATA.runs.compare && `beside ${DATA.runs.compare}`,
  DATA.runs.mix && `mix ${DATA.runs.mix}`,
  DATA.runs.keep && `keep-list ${DATA.runs.keep}`,
  `${WHOLE.format(DATA.rows.length)} of ${plural(DATA.funnel.samples, "sample")} on this page`,
].filter(Boolean).join(" · ");
drawFunnel();
drawColumns();
drawTabs();
listeners.push(showFound);
byId("search").addEventListener("input", (event) => {
  clearTimeout(pause);
  pause = setTimeout(() => search(event.target.value), 60);
});
byId("theme").addEventListener("click", nextTheme);
byId("help").addEventListener("click", showKeys);
document.addEventListener("keydown", onKey);
const wanted = TABS.find(([id]) => `#${id}` === location.hash);
openTab(wanted ? wanted[0] : "gallery");
document.documentElement.dataset.ready = "1";
