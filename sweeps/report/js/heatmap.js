// Layer x head x window maps, a panel a window, a row of panels a group; arrow keys move through all of them.

const WHOLE_LAYER = -1;
const ALL_GAP = 0.4; // between the heads and the whole layer, in cells
const LABEL = 30; // room for the names of layers
const HEAD_LABEL = 15;
const LAYERS_SHOWN = 48;
const MOST_CELLS = 12000;
const CELL = { least: 13, leastOnPhone: 14, most: 23 };

class Heatmap {
  // pick(id, pushed): a cell was chosen. turn(page): other layers are wanted.
  constructor(root, colours, { pick, turn }) {
    Object.assign(this, { root, colours, pick, turn });
    this.tip = element("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    document.body.append(this.tip);
    this.places = new Map();
    this.cells = new Map();
    this.rects = new Map();
    this.picked = null;
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("click", (event) => this.chosen(event));
    root.addEventListener("pointerover", (event) => this.pointed(event));
    root.addEventListener("pointerleave", () => { this.tip.hidden = true; });
  }

  // cells: {key, id, group, layer, head, window, percent, look, dim, text}; cells of one id are one cell in several
  // maps, each with a key of its own. windows: {index, text}. groups: {key, title}.
  draw(cells, groups, windows, page = 0) {
    const focused = this.root.contains(document.activeElement) && document.activeElement.dataset.key;
    this.windows = windows;
    const layers = Array.from(new Set(cells.map((cell) => cell.layer))).sort(d3.ascending);
    const pages = Math.ceil(layers.length / LAYERS_SHOWN);
    page = Math.min(Math.max(0, page), Math.max(0, pages - 1));
    this.layers = layers.slice(page * LAYERS_SHOWN, (page + 1) * LAYERS_SHOWN);
    const heads = Array.from(new Set(cells.map((cell) => cell.head)));
    this.columns = heads.filter((head) => head !== WHOLE_LAYER).sort(d3.ascending);
    if (heads.includes(WHOLE_LAYER)) this.columns.push(WHOLE_LAYER);
    const perGroup = Math.max(1, this.layers.length * this.columns.length * windows.length);
    this.groups = groups.slice(0, Math.max(1, Math.floor(MOST_CELLS / perGroup)));
    this.cells = new Map(cells.map((cell) => [cell.key, cell]));
    this.places = new Map();
    for (const cell of cells) {
      const place = this.place(cell);
      if (!this.places.has(place)) this.places.set(place, cell);
    }
    this.size = this.cellSize();
    this.rects = new Map();
    const parts = this.groups.map((group) => this.row(group));
    if (pages > 1) parts.unshift(this.pager(layers, page, pages));
    if (this.groups.length < groups.length) {
      parts.push(element("p", { class: "note" }, `${groups.length - this.groups.length} more maps are not drawn: choose a data set or a mode.`));
    }
    if (!cells.length) parts.push(element("p", { class: "note" }, "No head or whole layer to map here."));
    this.root.replaceChildren(...parts);
    this.mark(this.picked);
    if (focused && this.stop) (this.rects.get(focused) || this.stop).focus({ preventScroll: true });
  }

  place(cell) {
    return `${cell.group}\n${cell.layer}\n${cell.head}\n${cell.window}`;
  }

  // As large as lets all windows stand side by side, or on a phone fewer of them.
  cellSize() {
    const room = this.root.clientWidth || 640;
    const across = this.columns.length + (this.columns.includes(WHOLE_LAYER) && this.columns.length > 1 ? ALL_GAP : 0);
    const least = room < 500 ? CELL.leastOnPhone : CELL.least;
    let size = 0;
    for (let side = this.windows.length; side > 0 && size < least; side--) {
      size = Math.floor((room / side - LABEL - 10) / across);
    }
    return Math.min(CELL.most, Math.max(least, size));
  }

  row(group) {
    return element("section", { class: "map-row" },
      element("h3", {}, group.title),
      element("div", { class: "panels" }, this.windows.map((window) => this.panel(group, window))));
  }

  x(column) {
    const gap = this.columns.length > 1 && this.columns[column] === WHOLE_LAYER ? ALL_GAP : 0;
    return LABEL + (column + gap) * this.size;
  }

  panel(group, window) {
    const size = this.size;
    const width = this.x(this.columns.length - 1) + size + 2;
    const height = HEAD_LABEL + this.layers.length * size + 2;
    const every = Math.max(1, Math.ceil(15 / size));
    const labels = this.columns.map((head, column) =>
      head === WHOLE_LAYER || column % every === 0
        ? drawn("text", { x: this.x(column) + size / 2, y: HEAD_LABEL - 5, class: "map-label", "text-anchor": "middle" }, head === WHOLE_LAYER ? "all" : head)
        : null);
    const rows = this.layers.map((layer, line) => {
      const y = HEAD_LABEL + line * size;
      const found = this.columns.map((head, column) => this.rect(this.places.get(`${group.key}\n${layer}\n${head}\n${window.index}`), this.x(column), y, size));
      if (!found.some(Boolean)) return null;
      return drawn("g", { role: "row" }, found);
    });
    const names = this.layers.map((layer, line) =>
      drawn("text", { x: LABEL - 5, y: HEAD_LABEL + (line + 0.5) * size, class: "map-label", "text-anchor": "end", dy: "0.34em" }, `L${layer}`));
    return element("figure", { class: "panel" },
      element("figcaption", {}, window.text),
      element("div", { class: "scroll" },
        drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, ...(rows.some(Boolean) ? { role: "grid" } : { role: "img" }), "aria-label": `${group.title}, ${window.text}` },
          drawn("g", { "aria-hidden": "true" }, labels, names), rows)));
  }

  rect(cell, x, y, size) {
    if (!cell) return null;
    const rect = drawn("rect", {
      x: x + 0.5, y: y + 0.5, width: size - 1, height: size - 1, rx: 1.5, role: "gridcell", tabindex: -1,
      "data-cell": cell.id, "data-key": cell.key, "aria-label": cell.text, "aria-selected": "false", class: `cell ${cell.look}${cell.dim ? " dim" : ""}`,
      style: `fill: ${this.colours.fill(cell.look, cell.percent)}`,
    });
    this.rects.set(cell.key, rect);
    if (cell.look !== "improved") return rect;
    const line = { x1: x + size * 0.3, x2: x + size * 0.7, y1: y + size / 2, y2: y + size / 2 };
    return [rect, drawn("line", { ...line, class: `improved-mark${Math.abs(cell.percent) > 10 ? " on-dark" : ""}`, "aria-hidden": "true" })];
  }

  pager(layers, page, pages) {
    const select = element("select", { onchange: (event) => this.turn(Number(event.target.value)) },
      d3.range(pages).map((index) => {
        const part = layers.slice(index * LAYERS_SHOWN, (index + 1) * LAYERS_SHOWN);
        return element("option", { value: index, selected: index === page }, `L${part[0]} to L${part[part.length - 1]}`);
      }));
    return element("label", { class: "pager" }, `Layers, ${layers.length} in all `, select);
  }

  // The page of layers that a cell is on.
  static page(layers, layer) {
    const sorted = Array.from(new Set(layers)).sort(d3.ascending);
    return Math.max(0, Math.floor(sorted.indexOf(layer) / LAYERS_SHOWN));
  }

  shows(id) {
    return Array.from(this.rects.keys()).some((key) => this.cells.get(key).id === id);
  }

  mute(ids) {
    for (const [key, rect] of this.rects) rect.classList.toggle("dim", ids.has(this.cells.get(key).id));
  }

  // One cell is the picked one, and the way in for the Tab key; its likes in other maps are outlined.
  mark(id) {
    this.picked = id;
    for (const rect of this.root.querySelectorAll(".picked, .alike")) {
      rect.classList.remove("picked", "alike");
      rect.setAttribute("aria-selected", "false");
    }
    if (this.stop) this.stop.setAttribute("tabindex", "-1");
    const twins = Array.from(this.rects.keys()).map((key) => this.cells.get(key)).filter((cell) => cell.id === id);
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : "";
    const first = twins.find((cell) => cell.key === focused) || twins[0];
    this.stop = (first && this.rects.get(first.key)) || this.rects.values().next().value || null;
    if (this.stop) this.stop.setAttribute("tabindex", "0");
    if (!first) return;
    for (const group of this.groups) {
      const other = this.places.get(`${group.key}\n${first.layer}\n${first.head}\n${first.window}`);
      const outlined = other && this.rects.get(other.key);
      if (!outlined) continue;
      outlined.classList.add(other.id === id ? "picked" : "alike");
      outlined.setAttribute("aria-selected", String(other.id === id));
    }
  }

  chosen(event) {
    const id = event.target.dataset && event.target.dataset.cell;
    if (id === undefined) return;
    event.target.focus({ preventScroll: true });
    this.pick(id, true);
  }

  pointed(event) {
    const cell = event.target.dataset && this.cells.get(event.target.dataset.key);
    this.tip.hidden = !cell;
    if (!cell) return;
    this.tip.textContent = cell.text;
    const box = event.target.getBoundingClientRect();
    const width = Math.min(290, innerWidth - 16);
    this.tip.style.maxWidth = `${width}px`;
    this.tip.style.left = `${Math.max(8, Math.min(box.left + box.width / 2 - width / 2, document.documentElement.clientWidth - width - 8))}px`;
    this.tip.style.top = `${box.bottom + 8}px`;
  }

  key(event) {
    const cell = this.cells.get(document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : "");
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowRight: [1, 0, 0], ArrowLeft: [-1, 0, 0], ArrowDown: [0, 1, 0], ArrowUp: [0, -1, 0], PageDown: [0, 0, 1], PageUp: [0, 0, -1],
    };
    let next = null;
    if (event.key === "Enter" || event.key === " ") next = cell;
    else if (event.key === "Home" || event.key === "End") next = this.edge(cell, event.key === "End");
    else if (moves[event.key]) next = this.next(cell, moves[event.key]);
    else return;
    event.preventDefault();
    if (!next) return;
    this.rects.get(next.key).focus({ preventScroll: true });
    this.pick(next.id, next === cell);
    const rect = this.rects.get(next.key);
    rect.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  // The next measured cell in a direction; beyond the edge of a panel comes the next window, below it the next map.
  next(cell, [right, down, window]) {
    const across = this.columns.length;
    const position = {
      horizontal: this.windowPlace(cell) * across + this.columns.indexOf(cell.head),
      vertical: this.groupPlace(cell) * this.layers.length + this.layers.indexOf(cell.layer),
    };
    const limits = { horizontal: this.windows.length * across, vertical: this.groups.length * this.layers.length };
    for (;;) {
      position.horizontal += right + window * across;
      position.vertical += down;
      if (Object.keys(limits).some((name) => position[name] < 0 || position[name] >= limits[name])) return null;
      const found = this.at(position.horizontal, position.vertical);
      if (found) return found;
    }
  }

  edge(cell, last) {
    const start = this.windowPlace(cell) * this.columns.length;
    const line = this.groupPlace(cell) * this.layers.length + this.layers.indexOf(cell.layer);
    const found = this.columns.map((_, column) => this.at(start + column, line)).filter(Boolean);
    return found[last ? found.length - 1 : 0] || null;
  }

  at(horizontal, vertical) {
    const window = this.windows[Math.floor(horizontal / this.columns.length)];
    const group = this.groups[Math.floor(vertical / this.layers.length)];
    const head = this.columns[horizontal % this.columns.length];
    return this.places.get(`${group.key}\n${this.layers[vertical % this.layers.length]}\n${head}\n${window.index}`) || null;
  }

  windowPlace(cell) {
    return this.windows.findIndex((window) => window.index === cell.window);
  }

  groupPlace(cell) {
    return this.groups.findIndex((group) => group.key === cell.group);
  }
}
