// The views of two runs: the map of each, that of their difference, and one cell picked in all three.

class ComparisonExplorer extends LinkedViews {
  constructor(root, facts) {
    super(root, new ComparisonData(facts), {
      looks: facts.looks,
      legend: "percent, the same colours in every report; of the third map how much larger the ratio is in b",
      words: { primary: "compared", improved: "improved, or less in b", negligible: "same", inconclusive: "not certain" },
      caption: "All cells",
      columns: comparisonColumns,
      detail: (part, views) => new ComparisonDetail(part, views.data, views.state),
    });
  }

  // Without a choice, only the maps of the picked cell's data set and mode: three maps of everything would be many.
  mapped() {
    const rows = super.mapped();
    if (this.filters.chosen("dataset") || this.filters.chosen("mode")) return rows;
    const shown = this.picked || this.strongest();
    return rows.filter((row) => row.dataset === shown.dataset && row.mode === shown.mode);
  }

  update(changed) {
    const row = this.picked;
    const mapped = row && JSON.stringify([row.dataset, row.mode]);
    // The maps follow the picked cell to its data set and mode.
    const moved = changed && changed.includes("pick") && row && mapped !== this.shownFor;
    if (row) this.shownFor = mapped;
    if (moved) this.drawMap();
    super.update(changed);
  }

  // In a and in b a colour where the interval of that effect alone excludes zero; of the difference, its verdict.
  views(row, found) {
    const alone = (side) => {
      const [low, high] = [found[`low_${side}`], found[`high_${side}`]];
      const look = low > 0 ? "degraded" : high < 0 ? "improved" : "inconclusive";
      const percent = fromLog(found[`mean_${side}`]);
      return {
        percent, look, title: `${side}: ${this.data.facts.names[side]}`,
        text: `${side}: ${row.site}, ${row.mode}, ${row.windowText}, ${row.dataset}: ${percentText(percent)} (${intervalText(fromLog(low), fromLog(high))})`,
      };
    };
    return [alone("a"), alone("b"), { percent: fromLog(found.estimate), look: this.looks[found.verdict], title: "b against a", text: this.text(row, found) }];
  }

  text(row, found) {
    return `${row.site}, ${row.mode}, ${row.windowText}, ${row.dataset}: ${percentText(fromLog(found.mean_a))} in a, ${percentText(fromLog(found.mean_b))} in b; b against a ${percentText(fromLog(found.estimate))} (${intervalText(fromLog(found.ci_low), fromLog(found.ci_high))}), ${found.verdict}, q = ${probabilityText(found.q)}`;
  }
}

const imagesText = (row, found) => (row.paired ? found.n_a.toLocaleString("en") : `${found.n_a.toLocaleString("en")}, ${found.n_b.toLocaleString("en")}`);

function comparisonColumns(views) {
  const ratio = (name) => (row) => fromLog(views.effect(row)[name]);
  const of = (name) => (row) => views.effect(row)[name];
  return [
    ...placeColumns("certain differences first, the largest before the others"),
    numberColumn("in_a", "In a", ratio("mean_a"), percentText, "percent degradation"),
    numberColumn("in_b", "In b", ratio("mean_b"), percentText, "percent degradation"),
    numberColumn("difference", "b over a", ratio("estimate"), percentText, "how much larger the ratio of ablated to baseline is in b"),
    intervalColumn("ci_low", `${views.data.facts.confidence} CI`, ratio("ci_low"), ratio("ci_high")),
    numberColumn("p", "p", of("p"), probabilityText, "two-sided"),
    numberColumn("q", "q", of("q"), probabilityText, "p adjusted for the false discovery rate"),
    { key: "n", label: "n", kind: "number", value: of("n_a"), cell: (row) => element("td", { class: "num" }, imagesText(row, views.effect(row))) },
    { key: "verdict", label: "Verdict", kind: "text", value: of("verdict"), cell: (row) => element("td", {}, verdictMark(of("verdict")(row), views.looks[of("verdict")(row)])) },
  ];
}
