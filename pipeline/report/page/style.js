"use strict";
// How captions are worded: what drifts from the originals, how they begin, how long they are.

function stylePanel(panel) {
  for (const run of DATA.style) {
    panel.append(
      el("section", { class: "style-run" },
        el("h2", {}, el("bdi", {}, run.run), el("span", { class: "muted" }, ` ${DATA.runs.captioners[run.run] || ""}`)),
        el("div", { class: "style-grid" }, lengths(run), habits(run), openings(run), statuses(run)),
        ...["lengths", "repetition", "similarity"].map((name) => statistic(run.tables[name])),
      ),
    );
  }
  return { show() {} };
}

const ofStyle = (statistics, style) => {
  const at = statistics.columns.indexOf("style");
  return statistics.rows.filter((row) => row[at] === style);
};
const cell = (statistics, row, column) => row[statistics.columns.indexOf(column)];
const stylesOf = (run) => STYLES.filter(([style]) => run.words[style]);

function lengths(run) {
  const per = run.words_per_bar;
  const last = Math.max(...Object.values(run.words).map((counts) => counts.findLastIndex((count) => count > 0))) + 1;
  const box = el("div", { class: "box" }, el("h3", {}, "Words per caption"));
  for (const [style, name] of stylesOf(run)) {
    const counts = run.words[style].slice(0, last);
    const [all, most] = [counts.reduce((a, b) => a + b, 0), Math.max(...counts, 1)];
    const row = el("div", { class: "plot", role: "img", "aria-label": `${name}: most have ${counts.indexOf(most) * per} to ${counts.indexOf(most) * per + per - 1} words` });
    counts.forEach((count, i) => row.append(el("span", { class: `fill of-${style}`, css: { height: `${count ? Math.max(2, (100 * count) / most) : 0}%` }, title: `${i * per} to ${i * per + per - 1} words: ${percent(count, all)}` })));
    box.append(el("div", { class: "plot-row" }, el("span", { class: "plot-name" }, name), row));
  }
  box.append(el("div", { class: "axis muted shifted" }, el("span", {}, "0"), el("span", {}, `${last * per} words${last === run.words.original?.length ? " or more" : ""}`)));
  return box;
}

const HABITS = [
  ["begin_with_capital", "begin with a capital"],
  ["no_capital", "have no capital"],
  ["end_with_full_stop", "end with a full stop"],
  ["begin_with_space", "begin with a space"],
  ["first_word_divergence", "first words differ from the originals', bits"],
];

function habits(run) {
  const drift = run.tables.drift;
  const box = el("div", { class: "box" }, el("h3", {}, "Drift from the originals"));
  for (const [column, name] of HABITS) {
    box.append(el("h4", {}, name));
    for (const [style, title] of stylesOf(run)) {
      const [row] = ofStyle(drift, style);
      const value = row ? cell(drift, row, column) : null;
      if (value === null) continue;
      const said = column === "first_word_divergence" ? value.toFixed(3) : percent(value, 1);
      box.append(line(title, value, said, style));
    }
  }
  return box;
}

function line(name, share, said, style) {
  return el("div", { class: "line" }, el("bdi", { class: "line-name" }, name), el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: `fill of-${style}`, css: { width: `${100 * share}%` } })), el("span", { class: "n" }, said));
}

function openings(run) {
  const box = el("div", { class: "box" }, el("h3", {}, "Commonest beginnings"));
  for (const [style, name] of stylesOf(run)) {
    box.append(el("h4", {}, name));
    for (const row of ofStyle(run.tables.first_words, style)) {
      const share = cell(run.tables.first_words, row, "share");
      box.append(line(`${cell(run.tables.first_words, row, "opening")} …`, share, percent(share, 1), style));
    }
  }
  return box;
}

function statuses(run) {
  const box = el("div", { class: "box" }, el("h3", {}, "Status"));
  for (const [style, name] of STYLES) {
    const rows = ofStyle(run.tables.statuses, style);
    if (!rows.length) continue;
    box.append(el("h4", {}, name));
    for (const row of rows) {
      const [what, share] = [cell(run.tables.statuses, row, "status"), cell(run.tables.statuses, row, "share")];
      box.append(line(what, share, percent(share, 1), what === "ok" ? "ok" : "bad"));
    }
  }
  return box;
}

/** A named statistic as a table, its runs left out. */
function statistic({ title, columns, rows }) {
  if (!rows.length) return null;
  const wanted = columns.map((_, i) => i).filter((i) => columns[i] !== "run");
  const said = (value) => (typeof value === "number" ? number(value) : value === null ? "–" : String(value));
  const order = STYLES.map(([style]) => style);
  const sorted = [...rows].sort((a, b) => order.indexOf(a[columns.indexOf("style")]) - order.indexOf(b[columns.indexOf("style")]));
  return el("div", { class: "box wide" }, el("h3", {}, title), table(wanted.map((i) => columns[i].replaceAll("_", " ")), sorted.map((row) => wanted.map((i) => (columns[i] === "style" ? styleName(row[i]) : said(row[i]))))));
}
