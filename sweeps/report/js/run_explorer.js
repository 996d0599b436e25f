// The views of one run.

class RunExplorer extends LinkedViews {
  constructor(root, facts) {
    super(root, new RunData(facts), {
      looks: { degraded: "degraded", improved: "improved", negligible: "negligible", inconclusive: "inconclusive" },
      legend: "percent degradation, the same colours in every report",
      words: { primary: "registered", improved: "improved", negligible: "negligible", inconclusive: "inconclusive" },
      caption: "All trials",
      columns: runColumns,
      detail: (part, views) => new RunDetail(part, views.data, views.state),
    });
  }

  views(trial, effect) {
    return [{ percent: effect.percent, look: effect.verdict, text: this.text(trial, effect) }];
  }

  text(trial, effect) {
    return `${trial.site}, ${trial.mode}, ${trial.windowText}, ${trial.dataset}: ${percentText(effect.percent)} (${intervalText(effect.low, effect.high)}), ${effect.verdict}, q = ${probabilityText(effect.q)}, n = ${effect.n}`;
  }
}

function runColumns(views) {
  const of = (name) => (trial) => views.effect(trial)[name];
  return [
    ...placeColumns("place in the ranking on the registered metric"),
    numberColumn("percent", "Degradation", of("percent"), percentText),
    intervalColumn("ci_low", `${views.data.facts.confidence} CI`, of("low"), of("high")),
    numberColumn("d_z", ["d", element("sub", {}, "z")], of("d_z"), decimalText, "mean of the per-image log ratios over their standard deviation"),
    numberColumn("p", "p", of("p"), probabilityText, "one-sided"),
    numberColumn("q", "q", of("q"), probabilityText, "p adjusted for the false discovery rate"),
    numberColumn("n", "n", of("n"), (n) => n.toLocaleString("en"), "images"),
    {
      key: "verdict", label: "Verdict", kind: "text", value: of("verdict"),
      cell: (trial) => element("td", {}, verdictMark(of("verdict")(trial)), of("stopped")(trial) ? element("small", { title: "why it stopped early" }, ` ${of("stopped")(trial)}`) : null),
    },
  ];
}
