// Colours of effects: the bins of theme.py, the same in every report.

class Colours {
  constructor(bins) {
    this.edges = bins.edges;
    this.names = bins.names;
  }

  of(percent) {
    if (!Number.isFinite(percent)) return "var(--faint)";
    return `var(--${this.names[d3.bisectRight(this.edges, percent)]})`;
  }

  // Colour only where the verdict is a claim; hatching where it is open; plain where it is settled as small.
  fill(look, percent) {
    if (look === "degraded" || look === "improved") return this.of(percent);
    return look === "inconclusive" ? "url(#hatch)" : "var(--faint)";
  }

  legend(scale, words) {
    const bar = this.names.map((name, place) =>
      element("span", { class: "bin" },
        element("span", { class: "swatch-wide", style: `background: var(--${name})` }),
        element("span", { class: "edge" }, place < this.edges.length ? signed(`${this.edges[place] > 0 ? "+" : ""}${this.edges[place]}`) : "")));
    const key = (style, text, mark) =>
      element("span", { class: "key" }, element("span", { class: `swatch-key ${style}` }, mark || ""), text);
    return element("div", { class: "legend" },
      element("div", { class: "scale" }, element("span", { class: "scale-title" }, scale), element("div", { class: "bins", role: "img", "aria-label": `Colour scale from ${this.edges[0]} to ${this.edges[this.edges.length - 1]} percent` }, bar)),
      element("div", { class: "keys" },
        key("improved", words.improved, MINUS), key("negligible", words.negligible),
        key("inconclusive", words.inconclusive), key("absent", "not measured")));
  }
}

function hatchPattern() {
  return drawn("svg", { width: 0, height: 0, class: "offscreen", "aria-hidden": "true", focusable: "false" },
    drawn("defs", {},
      drawn("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        drawn("rect", { width: 5, height: 5, style: "fill: var(--faint)" }),
        drawn("rect", { width: 1.2, height: 5, style: "fill: var(--hatch)" }))));
}
