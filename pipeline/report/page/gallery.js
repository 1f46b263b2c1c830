"use strict";
// Long lists of samples: a few at first, more as one scrolls; and the keys that walk through them.

const AT_ONCE = 24;

class Listing {
  constructor(panel, make) {
    this.make = make;
    this.list = el("div", { class: "list" });
    this.more = el("button", { type: "button", class: "plain more", on: { click: () => this.grow() } }, "Show more");
    panel.append(this.list, this.more);
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.grow(), { rootMargin: "600px" }).observe(this.more);
  }

  show(rows) {
    this.rows = rows;
    this.shown = 0;
    this.list.replaceChildren();
    this.grow();
  }

  grow() {
    const next = (this.rows || []).slice(this.shown, this.shown + AT_ONCE);
    this.list.append(...next.map(this.make));
    this.shown += next.length;
    this.more.hidden = this.shown >= (this.rows || []).length;
    if (!this.shown) this.list.append(el("p", { class: "note" }, "No sample of this page is like that."));
  }

  /** Moves the focus to the next or the previous sample. */
  step(by) {
    const cards = [...this.list.querySelectorAll(".card")];
    const now = cards.indexOf(document.activeElement?.closest?.(".card"));
    let next = now < 0 ? 0 : now + by;
    if (next >= cards.length && !this.more.hidden) {
      this.grow();
      return this.step(by);
    }
    next = Math.min(Math.max(next, 0), cards.length - 1);
    cards[next]?.focus();
    return cards[next]?.scrollIntoView({ block: "nearest" });
  }
}

/** The tab of what was dropped: a choice of reasons, then the samples of each under its name. */
function droppedPanel(panel) {
  const total = new Map(DATA.funnel.drops.map((drop) => [`${drop.step}/${drop.reason}`, drop]));
  const choice = el("div", { class: "chips", role: "group", "aria-label": "Reasons" });
  panel.append(choice);
  const button = (id, name, count) =>
    el("button", { type: "button", class: "chip", "data-reason": id || "", "aria-pressed": "false", on: { click: () => { state.reason = id; changed(); } } }, name, el("span", { class: "n" }, SHORT.format(count)));
  const all = DATA.funnel.samples - DATA.funnel.kept;
  choice.append(button(null, "every reason", all), ...[...total].map(([id, drop]) => button(id, el("bdi", {}, drop.reason), drop.dropped)));
  roving(choice, "button");
  let last = null;
  const listing = new Listing(panel, (row) => {
    const drop = total.get(fateOf(row));
    const made = droppedCard(row);
    if (fateOf(row) === last) return made;
    last = fateOf(row);
    const heading = el("h3", { class: "reason-title" }, el("span", { class: "step" }, row.step), el("bdi", {}, row.reason), el("span", { class: "muted" }, drop ? `${plural(drop.dropped, "sample")}, ${percent(drop.dropped, DATA.funnel.samples)} of all` : ""));
    return el("div", { class: "reason-group" }, heading, made);
  });
  return {
    listing,
    show(rows) {
      last = null;
      const order = [...total.keys()];
      listing.show([...rows].sort((a, b) => order.indexOf(fateOf(a)) - order.indexOf(fateOf(b))));
      for (const chip of choice.children) chip.setAttribute("aria-pressed", String(chip.dataset.reason === (state.reason || "")));
    },
  };
}
