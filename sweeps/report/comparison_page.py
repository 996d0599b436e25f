"""The page of a comparison of two runs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sweeps.records import publish
from sweeps.report import wording
from sweeps.report.attempts import Attempts
from sweeps.report.cell_grid import grid_axes
from sweeps.report.compared import SETTLED, VERDICTS, Comparison, read_comparison
from sweeps.report.comparison_application import MAX_CELLS, comparison_application, windows_of
from sweeps.report.comparison_plots import effects_of_both, strongest
from sweeps.report.drawing import Drawing
from sweeps.report.heatmap import Legend, heatmap
from sweeps.report.tables import Number, number
from sweeps.report.template import Figure, embedded, fill
from sweeps.report.theme import FIGURE_STYLE

_STRONGEST_ROWS = 20


@dataclass(frozen=True)
class MetricCount:
    metric: str
    cells: int
    verdicts: dict[str, int]
    middle: Number


def write_comparison_page(path: Path) -> Path:
    """Write report/index.html and report/figures/ of a comparison's folder; return the path of the page."""
    found = read_comparison(path)
    folder = path / "report"
    folder.mkdir(exist_ok=True)
    page = render(found, folder / "figures")
    target = folder / "index.html"
    publish(target, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return target


def render(found: Comparison, figures: Path) -> str:
    """The page as text; writes the figures into the folder on the way."""
    facts, cells = found.facts, found.primary
    attempts = Attempts()
    nothing: list[Figure] = []
    with matplotlib.rc_context(FIGURE_STYLE):
        attempts.make("maps in report/figures", None, _save_maps, found, figures)
        both = attempts.make("scatter of both runs", nothing, lambda: embedded(draw_both(found), figures))
        most = attempts.make("largest differences", nothing, lambda: embedded(draw_strongest(found), figures))
    return fill(
        "comparison.html.j2",
        data=attempts.make("explorer", None, comparison_application, found),
        names=found.names,
        facts=facts,
        finished={side: wording.moment(facts[side]["finished"] or "–") for side in "ab"},
        findings=attempts.make("findings", [], findings, found),
        counts=_counts(cells),
        looks=VERDICTS,
        total=len(cells),
        most_cells=MAX_CELLS,
        both=both,
        strongest=most,
        metrics=attempts.make("metrics", [], _metrics, found),
        pairings=[_pairing(pairing, found.cells) for pairing in facts["pairings"]],
        any_paired=bool(cells["paired"].any()),
        any_independent=not bool(cells["paired"].all()),
        margin=f"{100 * facts['margin']:g}",
        alpha=f"{100 * facts['alpha']:g}",
        lost=attempts.lost,
        families=f"{len(cells.drop_duplicates(['layer_index', 'window_index'])):,}",
    )


def _save_maps(found: Comparison, figures: Path) -> None:
    """On disk only: the page has its own maps."""
    for drawing in draw_maps(found):
        drawing.save(figures)


def findings(found: Comparison) -> list[str]:
    """What the numbers say, in sentences made from them and from nothing else."""
    facts, cells = found.facts, found.primary
    counts = _counts(cells)
    sentences = [
        f"Of {wording.count(len(cells), 'cell')} on {found.metric}, {counts['more']:,} are degraded more in b, "
        f"{counts['less']:,} less, {counts['same']:,} the same (within ±{100 * facts['margin']:g}%), and "
        f"{counts['undecided']:,} are undecided, at a false discovery rate of {100 * facts['alpha']:g}%.",
        *(_top(found, dataset) for dataset in found.datasets),
        *(_over_heads(claim) for claim in facts["over_heads"]),
        _agreement(cells),
        _attribution(facts["factors"]),
    ]
    return [sentence for sentence in sentences if sentence]


def draw_maps(found: Comparison) -> list[Drawing]:
    """Differences arranged as the model is, one figure a data set and stream; colour only where they are certain."""
    cells = found.primary[found.primary["level"].isin(["head", "layer"])]
    if cells.empty or cells.duplicated(["data", "stream", "variant", "layer_index", "head", "window_index"]).any():
        return []
    # The colours of a run's map: more harm in b as degraded, less as improved.
    looked = cells.assign(verdict=cells["verdict"].map(VERDICTS))
    axes, variants = grid_axes(looked), tuple(looked["variant"].drop_duplicates().sort_values())
    legend = Legend("ratio in b over ratio in a, percent (fixed bins)", "same", "undecided")
    tooltips = {cell.trial_id: _tooltip(cell) for cell in cells.itertuples()}
    drawings = []
    for position, (data, stream) in enumerate(looked.groupby(["data", "stream"], sort=False).groups):
        part = looked[(looked["data"] == data) & (looked["stream"] == stream)]
        title = f"{data}, {stream} stream" if stream else str(data)
        settled = int(cells.loc[part.index, "verdict"].isin(SETTLED).sum())
        drawings.append(
            Drawing(
                name=wording.slug("differences", position, data, stream),
                figure=heatmap(part, axes, variants, legend),
                title=title,
                alt=f"Heatmap of differences for {title}: layers by heads, a panel for each window, for "
                f"{wording.listing(variants)}. {settled} of {len(part)} cells are coloured. The table has the numbers.",
                caption="",
                tooltips=tooltips,
            )
        )
    return drawings


def draw_both(found: Comparison) -> list[Drawing]:
    cells = found.primary
    heads = cells[cells["level"] == "head"]
    shown = heads if len(heads) > 1 else cells
    which = "Single heads. " if shown is heads else ""
    return [
        Drawing(
            name="a-against-b",
            figure=effects_of_both(shown, found.datasets, found.names),
            title="The same ablations in both runs",
            alt=f"Scatter of {wording.count(len(shown), 'cell')}: percent degradation in a against b.",
            caption=f"{which}On the diagonal both runs are hurt alike. Lines: {wording.CONFIDENCE} intervals of each "
            "effect alone; whether two effects differ is decided by the test of their difference, not by the overlap.",
        )
    ]


def draw_strongest(found: Comparison) -> list[Drawing]:
    cells = found.primary
    settled = cells[cells["verdict"].isin(SETTLED)]
    shown = (settled if len(settled) else cells).head(_STRONGEST_ROWS)
    what = "certain differences" if len(settled) else "differences, none of them certain"
    return [
        Drawing(
            name="strongest",
            figure=strongest(shown, found.names, math.log1p(found.facts["margin"])),
            title=f"The {len(shown)} largest {what}",
            alt=f"Dumbbells of {wording.count(len(shown), 'cell')}: effect in a and in b, and their difference.",
            caption=f"Left: the effect in each run. Right: the difference with its {wording.CONFIDENCE} interval, not "
            "adjusted for the selection: the largest of many leans high. Grey band: the margin.",
        )
    ]


def _counts(cells: pd.DataFrame) -> dict[str, int]:
    counts = cells["verdict"].value_counts()
    return {verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS}


def _top(found: Comparison, dataset: str) -> str:
    here = found.primary[found.primary["data"] == dataset]
    top = next(here[here["verdict"].isin(SETTLED)].itertuples(), None)
    if top is None:
        return f"On {dataset}, no difference is certain."
    where = f"{wording.site(top)} ({top.variant}, {windows_of(top)})"
    ratio = f"{wording.percent(top.percent)} against a ({wording.CONFIDENCE} CI {_percent(top.ci_low)} to "
    return (
        f"On {dataset}, the largest certain difference is {where}: {_percent(top.mean_a)} in a, {_percent(top.mean_b)} "
        f"in b; ablated ÷ baseline in b is {ratio}{_percent(top.ci_high)})."
    )


def _over_heads(claim: dict[str, Any]) -> str:
    low, middle, high = (_percent(claim[name]) for name in ("ci_low", "estimate", "ci_high"))
    data = claim["dataset"] if claim["dataset"] == claim["dataset_b"] else f"{claim['dataset']} → {claim['dataset_b']}"
    few = "; so few heads make it crude" if claim["heads"] < 10 else ""
    return (
        f"Over the {claim['heads']:,} heads together, on {data} ({claim['protocol']}), ablated ÷ baseline in b is "
        f"{middle} against a ({wording.CONFIDENCE} CI {low} to {high}, p = {wording.probability(claim['p'])}; heads "
        f"and images both resampled{few})."
    )


def _agreement(cells: pd.DataFrame) -> str:
    heads = cells[cells["level"] == "head"]
    if len(heads) < 3 or heads["mean_a"].nunique() < 2 or heads["mean_b"].nunique() < 2:
        return ""
    rho = spearmanr(heads["mean_a"], heads["mean_b"]).statistic
    return (
        f"Head effects in a and b have a rank correlation of {wording.decimal(rho)} over "
        f"{wording.count(len(heads), 'cell')} (descriptive)."
    )


def _attribution(factors: list[str]) -> str:
    if not factors:
        return "The runs differ in nothing that a measurement should depend on; what differs is listed below."
    if len(factors) == 1:
        return f"Of what a measurement depends on, the runs differ in {factors[0]} only."
    return (
        f"The runs differ in {wording.listing(factors)}: a difference between them cannot be put down to one of these."
    )


def _metrics(found: Comparison) -> list[MetricCount]:
    return [_metric(name, part) for name, part in found.cells.groupby("metric", sort=False)]


def _metric(name: str, cells: pd.DataFrame) -> MetricCount:
    middle = number(_percent_value(float(cells["estimate"].median())), wording.percent)
    return MetricCount(str(name), len(cells), _counts(cells), middle)


def _pairing(pairing: dict[str, Any], cells: pd.DataFrame) -> dict[str, str]:
    keys = ("dataset", "dataset_b", "protocol")
    here = cells[(cells[list(keys)] == [pairing[key] for key in keys]).all(axis=1)]
    n_a, n_b = (_used(here[side], pairing[side]) for side in ("n_a", "n_b"))
    if pairing["paired"]:
        what = "images" if pairing["shared_images"] else "seeds"
        noise = "" if pairing["shared_noise"] else "; their noise is not the same"
        how = f"paired: the same {n_a} {what} in both{noise}"
    else:
        how = f"independent: {n_a} units in a, {n_b} others in b"
    dropped = f"; {pairing['dropped']:,} units left out" if pairing["dropped"] else ""
    same = pairing["dataset"] == pairing["dataset_b"]
    data = pairing["dataset"] if same else f"{pairing['dataset']} → {pairing['dataset_b']}"
    return {"data": data, "protocol": pairing["protocol"], "how": how + dropped}


def _used(units: pd.Series, there: int) -> str:
    """``64``; ``16 of 256`` where a cell is compared on fewer than there are."""
    used = wording.between(units) if len(units) else f"{there:,}"
    return used if used == f"{there:,}" else f"{used} of {there:,}"


def _tooltip(cell: Any) -> str:
    return (
        f"{wording.site(cell)} · {cell.variant} · {windows_of(cell)} · {cell.data}\n"
        f"a {_percent(cell.mean_a)}, b {_percent(cell.mean_b)}; b over a {wording.percent(cell.percent)} "
        f"({wording.interval(_percent_value(cell.ci_low), _percent_value(cell.ci_high))})\n"
        f"{cell.verdict}, q = {wording.probability(cell.q)}"
    )


def _percent_value(log_ratio: float) -> float:
    with np.errstate(over="ignore"):
        return float(100 * np.expm1(log_ratio))


def _percent(log_ratio: float) -> str:
    return wording.percent(_percent_value(log_ratio))
