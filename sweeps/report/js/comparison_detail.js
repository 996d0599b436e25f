// What is known of the picked cell in both runs.

class ComparisonDetail extends Detail {
  parts(row, metric, effect, width) {
    return [
      this.head(row, metric, effect), this.numbers(row, effect), this.perImage(row, metric, effect, width),
      this.windows(row, metric, width), this.samples(row), this.alike(row, metric), this.metrics(row, metric),
    ];
  }

  verdict(effect) {
    return verdictMark(effect.verdict, this.data.facts.looks[effect.verdict]);
  }

  percent(effect) {
    return fromLog(effect.estimate);
  }

  head(row, metric, effect) {
    const interval = effect && `b against a; ${this.data.facts.confidence} CI ${intervalText(fromLog(effect.ci_low), fromLog(effect.ci_high))} of ${metric}`;
    return this.headline(row, effect, interval || `not measured on ${metric} in both runs`);
  }

  numbers(row, effect) {
    if (!effect) return null;
    const alone = (side) => `${percentText(fromLog(effect[`mean_${side}`]))} (${intervalText(fromLog(effect[`low_${side}`]), fromLog(effect[`high_${side}`]))})`;
    return this.facts([
      ["p", "p", probabilityText(effect.p), "two-sided"],
      ["q", "q", probabilityText(effect.q), "p adjusted for the false discovery rate"],
      ["in_a", "In a", alone("a")],
      ["in_b", "In b", alone("b")],
      ["n", "Images", row.paired ? `the same ${effect.n_a.toLocaleString("en")} in both` : `${effect.n_a.toLocaleString("en")} in a, ${effect.n_b.toLocaleString("en")} others in b`],
    ]);
  }

  perImage(row, metric, effect, width) {
    if (metric !== this.data.facts.metric) return null;
    const sides = ["a", "b"].map((side) => this.data.ratios(side, row));
    if (!sides.some((values) => values.length)) return null;
    const values = sides.flatMap((ratios, place) => ratios.map((ratio, image) => ({ ratio, side: "ab"[place], image })));
    const means = effect ? ["a", "b"].map((side) => ({ side, mean: effect[`mean_${side}`], low: effect[`low_${side}`], high: effect[`high_${side}`] })) : [];
    const pairs = row.paired && sides[0].length === sides[1].length ? sides[0].map((a, image) => ({ a, b: sides[1][image] })) : [];
    return this.part("Image by image", twoStrips(values, means, width),
      element("p", { class: "note" }, `Line: their mean; band: its ${this.data.facts.confidence} interval, of each run alone.`),
      pairs.length ? [ratioScatter(pairs, width), element("p", { class: "note" }, "The same image in both runs; above the diagonal the ablation hurts it more in b.")] : null);
  }

  windows(row, metric, width) {
    const points = this.data.overWindows(row).map((other) => ({ other, found: this.data.effect(metric, other) })).filter(({ found }) => found)
      .flatMap(({ other, found }) => ["a", "b"].map((side) => ({
        t: other.t, percent: fromLog(found[`mean_${side}`]), low: fromLog(found[`low_${side}`]), high: fromLog(found[`high_${side}`]),
        series: side, picked: other.id === row.id, called: this.data.facts.looks[found.verdict] === "degraded" || this.data.facts.looks[found.verdict] === "improved",
      })));
    const svg = overWindows(points, ["a", "b"], width);
    return svg && this.part(`Over the windows, ${row.mode}, ${row.dataset}`, svg, seriesKey(["a", "b"]),
      element("p", { class: "note" }, `Lines: ${this.data.facts.confidence} intervals of each effect alone. Filled: the difference is certain. Ringed: the picked window.`));
  }

  samples(row) {
    const uris = this.data.facts.samples[row.id];
    const note = this.data.facts.samples_note;
    if (!note) return null;
    if (!uris) return this.part("Samples", element("p", { class: "note" }, `The grids of this cell are not in this page. ${note}`));
    const grid = (side) => uris[side] && element("figure", { class: "sample-side" },
      element("figcaption", {}, `${side}: ${this.data.facts.names[side]}`),
      this.sampleColumns(),
      element("img", { class: "samples", src: uris[side], alt: `Samples of ${row.site}, ${row.mode}, ${row.windowText}, ${row.dataset} in ${side}: baseline, ablated, difference, from the same seeds` }));
    return this.part("Samples", grid("a"), grid("b"), element("p", { class: "note" }, `A row a seed. ${note}`));
  }
}
