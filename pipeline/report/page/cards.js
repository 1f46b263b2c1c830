"use strict";
// One sample: its picture, and its captions side by side.

const MOST_TOKENS = Math.max(96, ...DATA.rows.flatMap((row) => Object.values(row.texts).map((said) => said.tokens || 0)));
const CLIP_TOKENS = 75; // of the 77 two are start and end

function picture(row, large) {
  if (row.image) {
    return el("img", { src: `data:image/webp;base64,${row.image}`, alt: `sample ${row.key}`, decoding: "async", loading: large ? "eager" : "lazy" });
  }
  return el("span", { class: "no-image" }, "no picture", el("span", {}, row.no_image));
}

/** Whether the blend chose this caption of the run that is shown. */
function isBlended(row, style) {
  if (!row.source) return false;
  return row.source === style || row.source === `${DATA.runs.captions}.${style}`;
}

function status(said) {
  if (!said.status) return null;
  return el("span", { class: `status ${said.status === "ok" ? "ok" : "bad"}` }, said.status);
}

/** How many tokens, on a track with the line where CLIP stops to read. */
function meter(tokens) {
  const share = (count) => `${Math.min(100, (100 * count) / MOST_TOKENS)}%`;
  const over = tokens > CLIP_TOKENS;
  return el(
    "span",
    { class: `meter${over ? " over" : ""}`, title: `${plural(tokens, "token")}; CLIP reads ${CLIP_TOKENS} of a text, 77 with start and end` },
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: share(tokens) } }), el("span", { class: "limit", css: { left: share(CLIP_TOKENS) } })),
    el("span", {}, plural(tokens, "token")),
    over ? el("span", { class: "unseen" }, "over the 77 that CLIP reads") : null,
  );
}

function captionCell(row, style, name, said, content) {
  const chosen = isBlended(row, style);
  const scores = el("div", { class: "scores" });
  if (said.tokens !== undefined) scores.append(meter(said.tokens));
  else if (said.text) scores.append(el("span", {}, plural((said.text.match(/\S+/g) || []).length, "word")));
  if (said.similarity !== undefined) scores.append(el("span", { title: "cosine of caption and image" }, `similarity ${said.similarity.toFixed(3)}`));
  if (said.reason) scores.append(el("bdi", {}, said.reason));
  return el(
    "div",
    { class: `caption${chosen ? " chosen" : ""}` },
    el("div", { class: "caption-head" }, el("span", { class: "caption-name" }, name), status(said), chosen ? el("span", { class: "badge" }, "in the blend") : null),
    said.text === null ? el("p", { class: "muted none" }, "none") : el("p", { class: "text", dir: "auto" }, content || marked(said.text, state.words)),
    scores,
  );
}

function keyLine(row) {
  return el(
    "div",
    { class: "key" },
    el("code", { title: `shard ${row.shard}, uid ${row.uid}` }, el("bdi", {}, marked(row.key, state.words))),
    el("button", { type: "button", class: "copy", "aria-label": `Copy key ${row.key}`, on: { click: () => copy(row.key) } }, "copy"),
  );
}

function card(row, cells, extra) {
  return el(
    "article",
    { class: "card", tabindex: "0", "aria-label": `Sample ${row.key}`, "data-uid": row.uid },
    el("div", { class: "left" }, el("button", { type: "button", class: "open", tabindex: "-1", "aria-label": `Everything about sample ${row.key}`, on: { click: () => openDetail(row) } }, picture(row)), keyLine(row), extra),
    el("div", { class: `captions of-${cells.length}` }, cells),
  );
}

function captionCells(row) {
  return STYLES.filter(([style]) => row.texts[style]).map(([style, name]) => captionCell(row, style, name, row.texts[style]));
}

function galleryCard(row) {
  const known = STYLES.some(([style]) => isBlended(row, style));
  const elsewhere = row.source && !known ? el("p", { class: "fact" }, "blend: ", el("bdi", {}, row.source)) : null;
  const fell = row.drawn && row.source && row.drawn !== row.source ? el("p", { class: "fact" }, "fell back from ", el("bdi", {}, row.drawn)) : null;
  return card(row, captionCells(row), [elsewhere, fell]);
}

/** What was dropped, why, and the values of the columns that the reason names. */
function droppedCard(row) {
  const named = row.reason.match(/[A-Za-z_]\w*/g) || [];
  const values = DATA.columns
    .map((column, i) => [column, row.values[i]])
    .filter(([column, value]) => named.includes(column.name) && value !== null)
    .map(([column, value]) => el("span", { class: "fact" }, `${column.name} `, el("b", {}, typeof value === "number" ? number(value) : String(value))));
  return card(row, captionCells(row), [el("p", { class: "reason" }, el("span", { class: "step" }, row.step), el("bdi", {}, marked(row.reason, state.words))), ...values]);
}
