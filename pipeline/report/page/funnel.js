"use strict";
// What came in, what each reason dropped, what is kept. A reason leads to what it dropped.

function drawFunnel() {
  const { samples, kept, drops } = DATA.funnel;
  const scale = (count) => `${samples ? Math.max(count > 0 ? 0.3 : 0, (100 * count) / samples) : 0}%`;
  const line = (className, name, left, dropped, count) => [
    el("span", { class: "funnel-name" }, name),
    el(
      "span",
      { class: `funnel-bar ${className}`, "aria-hidden": "true" },
      el("span", { class: "left", css: { width: scale(left) } }),
      dropped ? el("span", { class: "dropped", css: { width: scale(dropped) } }) : null,
    ),
    el("span", { class: "funnel-count" }, count),
    el("span", { class: "funnel-share" }, percent(left, samples)),
  ];
  const list = el("ol", { class: "funnel" });
  list.append(el("li", { class: "funnel-row" }, line("in", "in", samples, 0, WHOLE.format(samples))));
  let before = "";
  for (const { step, reason, dropped, left } of drops) {
    const id = `${step}/${reason}`;
    const some = DATA.rows.some((row) => fateOf(row) === id);
    const name = [el("span", { class: "step" }, step === before ? "" : step), el("bdi", {}, reason)];
    const parts = line("", name, left, dropped, `−${WHOLE.format(dropped)}`);
    before = step;
    const label = `${step}: ${reason}, ${WHOLE.format(dropped)} dropped, ${WHOLE.format(left)} left`;
    list.append(
      el(
        "li",
        {},
        some
          ? el("button", { type: "button", class: "funnel-row", "aria-label": `${label}. Show them`, on: { click: () => showReason(id) } }, parts)
          : el("div", { class: "funnel-row" }, parts),
      ),
    );
  }
  list.append(el("li", { class: "funnel-row total" }, line("kept", "kept", kept, 0, WHOLE.format(kept))));
  byId("funnel").append(list);
}

function showReason(id) {
  state.reason = id;
  openTab("dropped");
  byId("tabs").scrollIntoView({ block: "start" });
}
