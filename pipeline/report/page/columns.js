"use strict";
// A histogram of every column. It counts everything; a click shows those samples of the page.

const charts = [];

function drawColumns() {
  const aside = byId("columns");
  const finder = el("input", { type: "search", id: "find-column", placeholder: "Find a column", "aria-label": "Find a column", autocomplete: "off" });
  const groups = new Map();
  DATA.columns.forEach((column, i) => {
    if (!groups.has(column.group)) groups.set(column.group, []);
    groups.get(column.group).push(i);
  });
  const box = el("details", { class: "columns", open: matchMedia("(min-width: 900px)").matches });
  box.append(el("summary", {}, el("h2", {}, "Columns"), el("span", { class: "muted" }, plural(DATA.columns.length, "histogram"))));
  box.append(el("p", { class: "muted hint" }, `Bars count all ${plural(DATA.funnel.samples, "sample")}. Click one to see its samples.`), finder);
  let first = true;
  for (const [group, members] of groups) {
    const details = el("details", { class: "group", open: first }, el("summary", {}, el("h3", {}, group), el("span", { class: "muted" }, `${members.length}`)));
    const draw = () => {
      if (details.dataset.drawn) return;
      details.dataset.drawn = "1";
      details.append(...members.map((i) => chart(DATA.columns[i], i)));
      markBars();
    };
    if (first) draw();
    details.addEventListener("toggle", () => details.open && draw());
    details.draw = draw;
    box.append(details);
    first = false;
  }
  if (DATA.left_out.length) {
    box.append(
      el("details", { class: "group" }, el("summary", {}, el("h3", {}, "Without a histogram"), el("span", { class: "muted" }, `${DATA.left_out.length}`)),
        el("p", { class: "hint muted" }, "Empty columns, hashes, places in files, embeddings and lists: "), el("ul", { class: "hint names" }, DATA.left_out.map((name) => el("li", {}, name)))),
    );
  }
  finder.addEventListener("input", () => {
    const wanted = finder.value.trim().toLowerCase();
    for (const details of box.querySelectorAll(".group")) {
      if (!details.draw) continue;
      if (wanted) details.draw();
      let any = false;
      for (const figure of details.querySelectorAll("figure")) {
        figure.hidden = !figure.dataset.name.includes(wanted);
        any ||= !figure.hidden;
      }
      details.hidden = Boolean(wanted) && !any;
      if (wanted && any) details.open = true;
    }
  });
  aside.append(box);
  listeners.push(markBars);
}

function chart(column, index) {
  const most = Math.max(...column.counts, 1);
  const title = column.kind === "words" ? `${column.name} (words)` : column.name;
  const figure = el("figure", { "data-name": column.name.toLowerCase() }, el("figcaption", {}, el("span", { class: "column-name" }, title), facts(column)));
  const vertical = column.kind !== "category";
  const bars = el("div", { class: vertical ? "bars" : "values", role: "group", "aria-label": title });
  column.counts.forEach((count, bar) => {
    if (!vertical && !count) return;
    const name = barName(column, bar);
    const size = `${count ? Math.max(2, (100 * count) / most) : 0}%`;
    const fill = el("span", { class: "fill", css: { [vertical ? "height" : "width"]: size } });
    const inner = vertical ? [fill] : [el("bdi", { class: "value" }, name), el("span", { class: "track" }, fill), el("span", { class: "n" }, SHORT.format(count))];
    bars.append(barButton(index, bar, `${name}: ${plural(count, "sample")}`, inner));
  });
  if (column.line !== undefined && vertical) {
    const place = (column.line + 1 - column.low) / (column.width * column.bars);
    if (place > 0 && place < 1) bars.append(el("span", { class: "limit", css: { left: `${100 * place}%` }, title: "CLIP reads 77 tokens: start, end and 75 of the text" }, el("span", {}, "77")));
  }
  figure.append(bars);
  if (vertical) {
    const end = Math.min(column.low + column.width * column.bars, Math.max(column.max, column.low + column.width * column.bars));
    figure.append(el("div", { class: "axis muted" }, el("span", {}, number(tidy(column.low))), el("span", {}, number(tidy(end)))));
  }
  if (column.missing) {
    figure.append(el("div", { class: "missing" }, barButton(index, DATA.missing, `missing: ${plural(column.missing, "sample")}`, [`missing ${SHORT.format(column.missing)}`])));
  }
  roving(figure, "button");
  return figure;
}

function facts(column) {
  if (column.kind === "category") return el("span", { class: "muted" }, plural(column.labels.filter((label) => label !== null).length, "value"));
  return el("span", { class: "muted" }, `median ${number(column.median)}`);
}

function barButton(column, bar, label, inner) {
  const button = el("button", { type: "button", class: "bar", title: label, "aria-label": label, "aria-pressed": "false", on: { click: () => toggle(column, bar) } }, inner);
  charts.push([button, column, bar]);
  return button;
}

function markBars() {
  for (const [button, column, bar] of charts) {
    const chosen = state.bars.get(column);
    button.setAttribute("aria-pressed", String(Boolean(chosen?.has(bar))));
    button.classList.toggle("faded", Boolean(chosen) && !chosen.has(bar));
  }
}
