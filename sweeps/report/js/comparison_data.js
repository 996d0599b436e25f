// Two runs as the views need them: matched cells, their effects in both, and the difference.

class ComparisonData {
  constructor(data) {
    this.facts = data;
    const columns = unpackedTable(data.cells);
    this.rows = columns.id.map((id, index) => ({
      index, id, site: columns.site[index], level: columns.level[index], layer: columns.layer[index], head: columns.head[index],
      stream: columns.stream[index], mode: columns.mode[index], dataset: columns.dataset[index], protocol: columns.protocol[index],
      window: columns.window[index], windowText: columns.window_text[index], path: "", t: columns.t[index], paired: columns.paired[index] === "paired",
    }));
    this.byId = new Map(this.rows.map((row) => [row.id, row]));
    this.metrics = Object.keys(data.contrasts);
    this.contrasts = new Map(this.metrics.map((metric) => [metric, this.contrastsOn(metric)]));
    this.images = data.images ? { a: unpackedTable(data.images.a), b: unpackedTable(data.images.b) } : null;
  }

  contrastsOn(metric) {
    const rows = unpackedTable(this.facts.contrasts[metric]);
    const found = new Array(this.rows.length).fill(null);
    rows.cell.forEach((cell, row) => {
      found[cell] = Object.fromEntries(Object.entries(rows).map(([name, column]) => [name, column[row]]));
    });
    return found;
  }

  effect(metric, row) {
    return (this.contrasts.get(metric) || [])[row.index] || null;
  }

  measured(metric) {
    return this.rows.filter((row) => this.effect(metric, row));
  }

  values(name) {
    const there = new Set(this.rows.map((row) => row[name]));
    return this.facts.cells[name].names.filter((value) => there.has(value));
  }

  sameSite(row, other) {
    return other.site === row.site && other.level === row.level && other.protocol === row.protocol;
  }

  alike(row) {
    return this.rows.filter((other) => this.sameSite(row, other) && other.window === row.window);
  }

  overWindows(row) {
    return this.rows.filter((other) => this.sameSite(row, other) && other.mode === row.mode && other.dataset === row.dataset);
  }

  // Log ratios of the compared images in a run, in the order in which pairs stand side by side.
  ratios(side, row) {
    const packed = this.images && this.images[side];
    if (!packed) return [];
    if (!packed.starts) packed.starts = d3.cumsum(packed.counts);
    const end = packed.starts[row.index];
    return Array.from(packed.codes.slice(end - packed.counts[row.index], end), (code) => (code === -32768 ? NaN : code * packed.step[row.index]));
  }
}
