// A sortable table of many rows, a page of them at a time.

const ROWS_A_PAGE = 25;

class TrialsTable {
  // columns: {key, label, hint, kind: "number" or "text", value(row), cell(row)}; rows have an `id`.
  constructor(root, state, caption, columns) {
    Object.assign(this, { root, state, columns, rows: [], page: 0 });
    this.headings = columns.map((column) => {
      const button = element("button", { type: "button", title: column.hint, onclick: () => this.sortBy(column) }, column.label);
      return element("th", { scope: "col", "data-key": column.key, class: column.kind === "number" ? "num" : null }, button);
    });
    this.body = element("tbody");
    const table = element("table", { class: "sortable", id: "all-trials" },
      element("caption", {}, caption), element("thead", {}, element("tr", {}, this.headings)), this.body);
    this.before = element("button", { type: "button", onclick: () => this.turn(-1) }, "Previous");
    this.after = element("button", { type: "button", onclick: () => this.turn(1) }, "Next");
    this.where = element("span", { "aria-live": "polite" });
    root.replaceChildren(
      element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table),
      element("div", { class: "pager" }, this.before, this.where, this.after));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row && !event.target.closest("a")) state.set({ pick: row.dataset.trial }, true);
    });
  }

  sortBy(column) {
    const [key, descending] = this.order();
    const other = key === column.key ? !descending : false;
    this.state.set({ sort: `${other ? "-" : ""}${column.key}` });
  }

  // [column, whether descending] from the address; anything else is the order given.
  order() {
    const text = this.state.get("sort");
    const descending = text.startsWith("-");
    const key = descending ? text.slice(1) : text;
    return this.columns.some((column) => column.key === key) ? [key, descending] : ["", false];
  }

  show(rows) {
    const [key, descending] = this.order();
    const column = this.columns.find((found) => found.key === key);
    this.rows = column ? this.sorted(rows, column, descending) : rows;
    for (const heading of this.headings) {
      if (heading.dataset.key === key) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    }
    this.page = 0;
    this.draw(this.state.get("pick"));
  }

  // What has no value comes last in either order.
  sorted(rows, column, descending) {
    const direction = descending ? -1 : 1;
    const keyed = rows.map((row) => ({ row, key: column.value(row) }));
    const missing = (key) => key === null || key === undefined || Number.isNaN(key);
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    keyed.sort((a, b) => {
      if (missing(a.key) || missing(b.key)) return missing(a.key) - missing(b.key);
      return direction * (typeof a.key === "number" ? a.key - b.key : compare(a.key, b.key));
    });
    return keyed.map(({ row }) => row);
  }

  // Turn to the page of the picked row, if it is among these.
  mark(id) {
    const place = this.rows.findIndex((row) => row.id === id);
    if (place >= 0) this.page = Math.floor(place / ROWS_A_PAGE);
    this.draw(id);
  }

  turn(step) {
    this.page += step;
    this.draw(this.state.get("pick"));
  }

  draw(id) {
    const start = this.page * ROWS_A_PAGE;
    const shown = this.rows.slice(start, start + ROWS_A_PAGE);
    this.body.replaceChildren(...shown.map((row) =>
      element("tr", { "data-trial": row.id, class: row.id === id ? "picked" : null, "aria-current": row.id === id ? "true" : null },
        this.columns.map((column) => column.cell(row)))));
    const all = this.rows.length;
    this.where.textContent = all ? `${(start + 1).toLocaleString("en")} to ${(start + shown.length).toLocaleString("en")} of ${all.toLocaleString("en")}` : "No trial fits these choices.";
    this.before.disabled = this.page === 0;
    this.after.disabled = start + ROWS_A_PAGE >= all;
  }
}
