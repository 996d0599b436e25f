"use strict";
// Sorting and filtering of tables, and the way from a heatmap cell to its row. Without it the page is complete.

const value = (cell) => cell.dataset.value ?? cell.textContent.trim();

function sortBy(table, column, heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const numeric = heading.dataset.kind === "number";
  const body = table.tBodies[0];
  const keyed = Array.from(body.rows, (row) => {
    const text = value(row.cells[column]);
    return { row, key: numeric ? (text === "" ? NaN : Number(text)) : text };
  });
  const direction = descending ? -1 : 1;
  keyed.sort((a, b) => {
    if (!numeric) return direction * a.key.localeCompare(b.key, undefined, { numeric: true });
    if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
    return direction * (a.key - b.key);
  });
  body.append(...keyed.map(({ row }) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function makeSortable(table) {
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, column, heading));
    heading.replaceChildren(button);
    if (heading.dataset.kind === "number") heading.classList.add("num");
  });
}

function addFilters(form) {
  const table = document.getElementById(form.dataset.for);
  const rows = Array.from(table.tBodies[0].rows);
  const headings = Array.from(table.tHead.rows[0].cells);
  const shown = document.createElement("output");
  for (const key of ["level", "mode", "window", "dataset", "verdict"]) {
    const column = headings.findIndex((heading) => heading.dataset.key === key);
    const texts = new Set(rows.map((row) => row.cells[column].firstChild.textContent.trim()));
    const select = document.createElement("select");
    select.dataset.filter = column;
    select.append(new Option("all", ""), ...Array.from(texts).sort().map((text) => new Option(text, text)));
    const label = document.createElement("label");
    label.append(headings[column].textContent.trim(), select);
    form.append(label);
  }
  const search = form.querySelector("input");
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    const chosen = Array.from(form.querySelectorAll("select")).filter((select) => select.value);
    let count = 0;
    for (const row of rows) {
      const fits =
        chosen.every((s) => row.cells[s.dataset.filter].firstChild.textContent.trim() === s.value) &&
        (!wanted || row.textContent.toLowerCase().includes(wanted));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  form.append(shown);
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
}

function showTrial(id) {
  const row = document.getElementById(`trial-${id}`);
  if (!row) return;
  document.getElementById("all").open = true;
  row.hidden = false;
  for (const other of document.querySelectorAll("tr.picked")) other.classList.remove("picked");
  row.classList.add("picked");
  row.scrollIntoView({ block: "center" });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("form.filters").forEach(addFilters);
document.addEventListener("click", (event) => {
  const cell = event.target.closest("svg [data-trial]");
  if (cell) showTrial(cell.dataset.trial);
});
