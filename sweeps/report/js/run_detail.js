// Everything that is known of the picked cell of a run.

class RunDetail extends Detail {
  parts(trial, metric, effect, width) {
    return [
      this.head(trial, metric, effect), this.numbers(trial, metric, effect), this.againstControls(trial, metric),
      this.perImage(trial, metric, effect, width), this.windows(trial, metric, width), this.samples(trial),
      this.aboutHead(trial, width), this.alike(trial, metric), this.metrics(trial, metric),
    ];
  }

  verdict(effect) {
    return verdictMark(effect.verdict);
  }

  percent(effect) {
    return effect.percent;
  }

  head(trial, metric, effect) {
    const interval = effect && `${this.data.facts.confidence} CI ${intervalText(effect.low, effect.high)} of ${metric}`;
    return this.headline(trial, effect, interval || `not measured on ${metric}`);
  }

  numbers(trial, metric, effect) {
    if (!effect) return null;
    const registered = this.data.facts.metric;
    const primary = metric === registered;
    const of = trial.most > effect.n ? ` of at most ${trial.most.toLocaleString("en")}` : "";
    const rank = primary && Number.isFinite(trial.rank)
      ? `${trial.rank} of ${trial.ranked} head trials (${trial.rankLow} to ${trial.rankHigh})` : null;
    const halves = primary && trial.halves.every(Number.isFinite)
      ? trial.halves.map((half) => percentText(fromLog(half))).join(" and ") : null;
    return this.facts([
      ["d_z", "dz", decimalText(effect.d_z), "mean of the log ratios over their standard deviation"],
      ["p", "p", probabilityText(effect.p), "one-sided"],
      ["q", "q", probabilityText(effect.q), "p adjusted for the false discovery rate over the grid"],
      ["n", "Images", `${effect.n.toLocaleString("en")}${of}`],
      ["stopped", "Stopped", this.stopped(trial, primary ? "its verdict" : `its verdict on ${registered}`)],
      ["rank", "Rank", rank, "with an interval that holds for all ranks at once"],
      ["halves", "Two halves", halves, "on every other image, and on the images between"],
      ["path", "Module", trial.path],
    ]);
  }

  // The registered metric alone decides when a trial stops, for every other one as well.
  stopped(trial, verdict) {
    const effect = this.data.effect(this.data.facts.metric, trial);
    const reasons = { decided: `early: ${verdict} was certain`, futile: `early: more images could not have decided ${verdict}` };
    if (effect && effect.stopped) return reasons[effect.stopped] || effect.stopped;
    return effect && trial.most > effect.n ? "not yet decided" : "no: measured on all of its images";
  }

  againstControls(trial, metric) {
    const found = metric === this.data.facts.metric && this.data.controls.get(trial.index);
    if (!found) return null;
    const below = Math.round((1 - found.p_controls) * (found.controls + 1));
    const ratio = percentText(fromLog(found.estimate));
    return this.part("Against random subspaces",
      element("p", { class: "controls" }, `${ratio} against the average of ${found.controls} random subspaces of its layer and window (${this.data.facts.confidence} CI ${intervalText(fromLog(found.ci_low), fromLog(found.ci_high))}, q = ${probabilityText(found.q)}, ${found.images} images). It is worse than ${Math.max(0, Math.min(found.controls, below))} of them (p = ${probabilityText(found.p_controls)}).`));
  }

  perImage(trial, metric, effect, width) {
    const values = this.data.images.of(metric, trial);
    if (!values.length) return null;
    const fewer = effect && values.length < effect.n ? `${values.length} of ${effect.n} images are here. ` : "";
    const scatter = pairedScatter(values, metric, width);
    return this.part("Image by image",
      imageStrip(values, effect, width),
      element("p", { class: "note" }, `${fewer}Line: their mean; band: its ${this.data.facts.confidence} interval.`),
      scatter,
      scatter ? element("p", { class: "note" }, "Each image with and without the ablation, the same noise in both; above the diagonal it hurts.") : null);
  }

  windows(trial, metric, width) {
    const points = this.data.overWindows(trial).map((other) => ({ other, effect: this.data.effect(metric, other) }))
      .filter(({ effect }) => effect)
      .map(({ other, effect }) => ({
        t: middle(other), percent: effect.percent, low: effect.low, high: effect.high, series: other.dataset,
        picked: other.id === trial.id, called: effect.verdict === "degraded" || effect.verdict === "improved",
      }));
    const series = this.data.values("dataset").filter((name) => points.some((point) => point.series === name));
    const svg = overWindows(points, series, width);
    if (!svg) return null;
    return this.part(`Over the windows, ${trial.mode}`, svg, seriesKey(series),
      element("p", { class: "note" }, `Lines: ${this.data.facts.confidence} intervals. Filled: degraded or improved. Ringed: the picked window.`));
  }

  samples(trial) {
    const uri = this.data.facts.samples[trial.id];
    const note = this.data.facts.samples_note;
    if (!uri && !note) return null;
    if (!uri) return this.part("Samples", element("p", { class: "note" }, `This trial's grid is not in this page. ${note}`));
    return this.part("Samples",
      this.sampleColumns(),
      element("img", { class: "samples", src: uri, alt: `Samples of ${trial.site}, ${trial.mode}, ${trial.windowText}, ${trial.dataset}: baseline, ablated, difference, from the same seeds` }),
      element("p", { class: "note" }, `A row a seed. ${note}`));
  }

  aboutHead(trial, width) {
    const found = this.data.heads && this.data.heads.of(trial);
    if (!found || trial.level !== "head") return null;
    const sure = Number.isFinite(found.probability) ? ` (probability ${decimalText(found.probability)})` : "";
    const maps = this.data.heads.attention(trial).map((map) => element("figure", { class: "attention" },
      element("div", {}, attentionPicture(unpacked(map.received), map, false, `Attention received by each place at t ${map.t}`),
        attentionPicture(unpacked(map.from_query), map, true, `Attention from one query at t ${map.t}`)),
      element("figcaption", {}, `t ${map.t}`)));
    return this.part("The head", element("p", { class: "head-type" }, `Type: ${found.type}${sure}`),
      entropyProfile(found.entropy, this.data.heads.facts.keys, width),
      element("p", { class: "note" }, "Entropy of its attention; dashed: uniform attention."),
      maps.length ? [element("div", { class: "attention-maps" }, maps), element("p", { class: "note" }, "Attention on the first image: received by each place, and from one query (the ring).")] : null);
  }

  metrics(trial, metric) {
    const found = super.metrics(trial, metric);
    if (found) found.append(element("p", { class: "note" }, `Only ${this.data.facts.metric} was registered; the others are exploratory.`));
    return found;
  }
}
