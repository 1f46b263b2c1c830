"use strict";
// Two caption runs side by side: how often they agree, and each sample with both.

function comparePanel(panel) {
  const { captions, compare, captioners } = DATA.runs;
  const names = [captions, compare].map((run) => el("bdi", {}, run, el("span", { class: "muted" }, ` ${captioners[run] || ""}`)));
  panel.append(el("p", { class: "versus" }, names[0], el("span", { class: "muted" }, "beside"), names[1]));
  const signed = (value, digits) => (value === null ? "–" : `${value > 0 ? "+" : ""}${value.toFixed(digits)}`);
  panel.append(
    table(
      ["style", "samples", "said alike", "tokens, mean difference", "similarity, mean difference"],
      DATA.agreement.map((a) => [styleName(a.style), WHOLE.format(a.samples), percent(a.same, 1), signed(a.tokens, 2), signed(a.similarity, 4)]),
    ),
  );
  const only = el("input", { type: "checkbox", on: { change: (event) => { state.differ = event.target.checked; changed(); } } });
  panel.append(el("label", { class: "check" }, only, "only where they differ"));
  const listing = new Listing(panel, compareCard);
  return { listing, show: (rows) => listing.show(rows) };
}

function compareCard(row) {
  const cells = comparable(row).map(([style, name]) => {
    const [ours, theirs] = [row.texts[style], row.other[style]];
    const pair = [
      [DATA.runs.captions, ours, theirs],
      [DATA.runs.compare, theirs, ours],
    ].map(([run, said, other]) => {
      const content = said.text === null || other.text === null || state.words.length ? null : differing(said.text, other.text);
      const blended = run === DATA.runs.captions ? style : `${run}.${style}`;
      return captionCell(row, blended, [el("bdi", {}, run), ` ${name}`], said, content);
    });
    return el("div", { class: "pair" }, pair);
  });
  const original = row.texts.original;
  const extra = original && original.text ? el("p", { class: "fact original", dir: "auto" }, original.text) : null;
  return card(row, cells, extra);
}

function table(heads, rows) {
  const body = rows.map((cells) => el("tr", {}, cells.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": heads.join(", ") }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, body)));
}
