// Sorting of the tables that are in the page without the script.

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
    const first = table.tBodies[0].rows[0];
    if (first && first.cells[column].classList.contains("num")) heading.classList.add("num");
  });
}
