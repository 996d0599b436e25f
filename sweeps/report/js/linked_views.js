// Choices, maps, a table and the picked row, all linked by one state. What they show is a subclass's.

const CHOICES = ["dataset", "mode", "verdict", "level", "window"];

class LinkedViews {
  // data: has rows (each with id, site, level, layer, head, stream, mode, dataset, window, windowText), byId, metrics,
  // facts, values(name) and effect(metric, row), whose verdict is one of `looks`: the verdicts and their colours.
  constructor(root, data, { looks, legend, words, caption, columns, detail }) {
    Object.assign(this, { root, data, looks });
    const { facts } = data;
    this.state = new State({ pick: this.strongest().id, metric: facts.metric, dataset: "", mode: "", verdict: "", level: "", window: "", search: "", sort: "", layers: "" });
    const colours = new Colours(facts.bins);
    root.append(hatchPattern());
    const listed = (name) => data.values(name).map((value) => [value, value || "none"]);
    this.filters = new Filters(root.querySelector("form"), this.state, [
      { name: "metric", label: "Metric", options: data.metrics.map((name) => [name, name === facts.metric ? `${name} (${words.primary})` : name]), all: null },
      { name: "dataset", label: "Data set", options: listed("dataset"), all: "all" },
      { name: "mode", label: "Mode", options: listed("mode"), all: "all" },
      { name: "verdict", label: "Verdict", options: Object.keys(looks).map((name) => [name, name]), all: "all" },
      { name: "level", label: "Level", options: listed("level"), all: "all" },
      { name: "window", label: "Window", options: this.windows().map((window) => [String(window.index), window.text]), all: "all" },
    ]);
    this.map = new Heatmap(root.querySelector("[data-view=map]"), colours, {
      pick: (id, pushed) => this.state.set({ pick: id, at: "" }, pushed),
      turn: (page) => this.state.set({ layers: String(page) }),
    });
    root.querySelector("[data-view=legend]").append(colours.legend(legend, words));
    this.table = new TrialsTable(root.querySelector("[data-view=table]"), this.state, caption, columns(this));
    this.detail = detail(root.querySelector("[data-view=detail]"), this);
    this.said = root.querySelector("[data-view=said]");
    this.state.listen((changed) => this.update(changed));
    document.addEventListener("keydown", (event) => this.escape(event));
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth === width) return;
      width = innerWidth;
      clearTimeout(this.resized);
      this.resized = setTimeout(() => this.fit(), 120);
    });
    root.hidden = false;
    this.update(null);
    if (this.state.get("pick") !== this.state.defaults.pick) this.table.mark(this.state.get("pick"));
    this.state.scroll();
  }

  get metric() {
    return this.filters.chosen("metric");
  }

  get picked() {
    return this.data.byId.get(this.state.get("pick")) || null;
  }

  strongest() {
    return this.data.rows.find((row) => row.level === "head") || this.data.rows[0];
  }

  effect(row) {
    return this.data.effect(this.metric, row);
  }

  windows() {
    const found = new Map(this.data.rows.map((row) => [row.window, row.windowText]));
    return Array.from(found, ([index, text]) => ({ index, text })).sort((a, b) => a.index - b.index);
  }

  // What the choices keep of the rows measured on the metric.
  fits(row, names) {
    return names.every((name) => {
      const chosen = this.filters.chosen(name);
      return !chosen || (name === "verdict" ? this.effect(row).verdict : String(row[name])) === chosen;
    });
  }

  found(row) {
    const words = this.state.get("search").trim().toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return true;
    const effect = this.effect(row);
    const text = [row.site, row.level, row.mode, row.windowText, row.dataset, row.path, row.id, effect.verdict, effect.stopped].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  // The views that a change concerns; null for all of them.
  update(changed) {
    const only = (...names) => changed && changed.every((name) => names.includes(name));
    if (only("at")) return;
    if (only("pick", "at")) {
      this.turnToPick();
      this.showPick();
      return;
    }
    if (only("verdict", "level", "search")) this.mute();
    else if (!only("sort")) this.drawMap();
    this.showTable();
    this.showPick(false);
  }

  // To another width of the window, which leaves the table where it is.
  fit() {
    this.drawMap();
    this.showPick(false);
  }

  mapped() {
    return this.data.measured(this.metric).filter((row) => (row.level === "head" || row.level === "layer") && this.fits(row, ["dataset", "mode", "window"]));
  }

  muted(row) {
    return !this.fits(row, ["level", "verdict"]) || !this.found(row);
  }

  // Choices that leave every cell where it is.
  mute() {
    this.map.mute(new Set(this.mapped().filter((row) => this.muted(row)).map((row) => row.id)));
  }

  drawMap() {
    const rows = this.mapped();
    const streams = new Set(rows.map((row) => row.stream)).size > 1;
    const groups = new Map();
    const cells = rows.flatMap((row) => {
      const effect = this.effect(row);
      const dim = this.muted(row);
      return this.views(row, effect).map((view, place) => {
        const key = JSON.stringify([row.dataset, row.mode, row.stream, place]);
        if (!groups.has(key)) groups.set(key, { key, title: [row.dataset, row.mode, streams ? `${row.stream || "one"} stream` : "", view.title].filter(Boolean).join(" · ") });
        return {
          id: row.id, group: key, layer: row.layer, head: row.level === "layer" ? WHOLE_LAYER : row.head, window: row.window,
          percent: view.percent, look: view.look, dim, text: view.text, key: `${place}/${row.id}`,
        };
      });
    });
    const there = new Set(rows.map((row) => row.window));
    this.layers = cells.map((cell) => cell.layer);
    const page = this.state.get("layers") !== "" ? Number(this.state.get("layers")) || 0 : this.picked ? Heatmap.page(this.layers, this.picked.layer) : 0;
    this.map.draw(cells, this.ordered(Array.from(groups.values())), this.windows().filter((window) => there.has(window.index)), page);
  }

  // Data sets, in each the modes, in the order of the choices, and in each the views.
  ordered(groups) {
    const datasets = this.data.values("dataset"), modes = this.data.values("mode");
    const keyed = groups.map((group) => ({ group, key: JSON.parse(group.key) }));
    keyed.sort(({ key: a }, { key: b }) => datasets.indexOf(a[0]) - datasets.indexOf(b[0]) || modes.indexOf(a[1]) - modes.indexOf(b[1]) || d3.ascending(a[2], b[2]) || a[3] - b[3]);
    return keyed.map(({ group }) => group);
  }

  showTable() {
    const measured = this.data.measured(this.metric);
    const rows = measured.filter((row) => this.fits(row, CHOICES) && this.found(row));
    this.table.show(rows);
    this.filters.show(rows.length, measured.length);
  }

  // To the layers of a newly picked row, where the map shows others.
  turnToPick() {
    const row = this.picked;
    if (!row || !this.layers.includes(row.layer) || this.map.shows(row.id)) return;
    this.state.values.layers = "";
    this.drawMap();
  }

  showPick(table = true) {
    const row = this.picked;
    this.map.mark(row ? row.id : null);
    if (table) this.table.mark(row ? row.id : null);
    this.detail.show(row, this.metric);
    const effect = row && this.effect(row);
    this.said.textContent = effect ? this.text(row, effect) : "No cell is picked.";
  }

  escape(event) {
    if (event.key !== "Escape") return;
    this.map.tip.hidden = true;
    if (document.activeElement === this.filters.search) {
      document.activeElement.blur();
      return;
    }
    this.state.set({ pick: "none" }, true);
  }
}

const textColumn = (key, label, read) => ({ key, label, kind: "text", value: read, cell: (row) => element("td", {}, read(row)) });

function numberColumn(key, label, read, write, hint) {
  return { key, label, hint, kind: "number", value: read, cell: (row) => element("td", { class: "num", "data-value": read(row) }, write(read(row))) };
}

function intervalColumn(key, label, low, high) {
  return { key, label, kind: "number", value: low, cell: (row) => element("td", { class: "num", "data-value": low(row), "data-high": high(row) }, intervalText(low(row), high(row))) };
}

// Rank, site, level, mode, window and data set.
function placeColumns(ranking) {
  return [
    { key: "rank", label: "#", kind: "number", hint: ranking, value: (row) => row.index, cell: (row) => element("td", { class: "num" }, (row.index + 1).toLocaleString("en")) },
    { key: "site", label: "Site", kind: "text", value: (row) => row.site, cell: (row) => element("th", { scope: "row" }, element("a", { href: `#pick=${encodeURIComponent(row.id)}` }, row.site)) },
    textColumn("level", "Level", (row) => row.level),
    textColumn("mode", "Mode", (row) => row.mode),
    { key: "window", label: "Window", kind: "text", value: (row) => row.window, cell: (row) => element("td", {}, row.windowText) },
    textColumn("dataset", "Data", (row) => row.dataset),
  ];
}
