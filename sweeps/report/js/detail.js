// What every detail panel has.

class Detail {
  constructor(root, data, state) {
    Object.assign(this, { root, data, state });
  }

  show(row, metric) {
    if (!row) {
      this.root.replaceChildren(element("h3", {}, "No cell is picked"),
        element("p", { class: "note" }, "Pick a cell of the map or a row of the table. Arrow keys move over the map, Escape takes the choice back, / goes to the search."));
      return;
    }
    const width = Math.max(240, Math.min(460, (this.root.clientWidth || 400) - 40));
    this.root.replaceChildren(...this.parts(row, metric, this.data.effect(metric, row), width).filter(Boolean));
    this.root.scrollTop = 0;
  }

  part(title, ...children) {
    const shown = children.flat().filter(Boolean);
    return shown.length ? element("section", { class: "part" }, element("h4", {}, title), shown) : null;
  }

  headline(row, effect, below) {
    const percent = effect ? this.percent(effect) : null;
    return element("div", { class: "detail-head" },
      element("h3", {}, row.site),
      element("p", { class: "where" }, `${row.mode} · ${row.windowText} · ${row.dataset}`),
      element("p", { class: "big", "data-value": percent }, effect ? percentText(percent) : NONE, effect ? this.verdict(effect) : null),
      element("p", { class: "where" }, below));
  }

  // [key, label, text, hint]; what has no text is left out.
  facts(rows) {
    return element("dl", { class: "numbers" }, rows.filter(([, , text]) => text).map(([key, label, text, hint]) =>
      element("div", { "data-key": key }, element("dt", { title: hint }, label === "dz" ? ["d", element("sub", {}, "z")] : label), element("dd", {}, text))));
  }

  sampleColumns() {
    return element("div", { class: "columns", "aria-hidden": "true" }, ["baseline", "ablated", "difference"].map((name) => element("span", {}, name)));
  }

  alike(row, metric) {
    const others = this.data.alike(row).filter((other) => this.data.effect(metric, other));
    if (others.length < 2) return null;
    return this.part("The same site and window", this.list("Data sets and modes", others.map((other) => {
      const name = `${other.dataset}, ${other.mode}`;
      return [other.id === row.id ? element("strong", {}, name) : element("a", { href: `#pick=${encodeURIComponent(other.id)}` }, name), this.data.effect(metric, other)];
    })));
  }

  metrics(row, metric) {
    const found = this.data.metrics.filter((name) => this.data.effect(name, row));
    if (found.length < 2) return null;
    return this.part("Every metric", this.list("Metrics of this cell", found.map((name) => [
      name === metric ? element("strong", {}, name) : element("a", { href: `#metric=${encodeURIComponent(name)}` }, name), this.data.effect(name, row),
    ])));
  }

  list(label, rows) {
    return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
      element("table", {}, element("tbody", {}, rows.map(([name, effect]) =>
        element("tr", {}, element("th", { scope: "row" }, name), element("td", { class: "num" }, percentText(this.percent(effect))), element("td", {}, this.verdict(effect)))))));
  }
}
