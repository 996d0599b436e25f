"""A W&B workspace and a W&B report of one sweep, or of two beside one another: what is shown, without sending it."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.tracking.heads import INTERVAL, PREFIX
from sweeps.tracking.ledger import kinds_written
from sweeps.tracking.maps import map_key
from sweeps.tracking.outcomes import Outcomes
from sweeps.tracking.plan import Plan, ablation, is_control
from sweeps.tracking.summary import DEGRADED, EFFECTS, HIGHEST

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about how wandb_workspaces is written
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

LINES = 30
"""Runs drawn in one chart over the diffusion process."""
COLOURS = ("#2166ac", "#b2182b")
VERDICTS = ("degraded", "improved", "negligible", "inconclusive")
COLUMNS = ("summary:verdict", "summary:percent", "summary:ci_low", "summary:ci_high", "summary:q")
AXES = ("sweep", "kind", "layer", "head", "window", "ablation", "dataset", "protocol")
VISIBLE = [*COLUMNS, *(f"config:{axis}.value" for axis in AXES)]


@dataclass(frozen=True)
class Sweep:
    """What a view needs to know of a run directory."""

    name: str
    id: str
    summary_id: str
    metric: str
    keys: tuple[tuple[str, str, str], ...]
    """Data set, protocol and mode of each map."""
    facts: dict[str, Any]
    trials: str
    """Kind of the runs that show trials: trial, or of many trials group."""
    lines: str
    """Kind of the runs that show them over the diffusion process: head, or of many heads layer."""

    @classmethod
    def of(cls, plan: Plan) -> Sweep:
        trials = [axes for axes in plan.trials.values() if not is_control(axes)]
        mapped = [axes for axes in trials if axes.get("level") in ("head", "layer")]
        keys = dict.fromkeys((str(axes["dataset"]), str(axes["protocol"]), ablation(axes)) for axes in mapped)
        outcomes = Outcomes.read(plan.run_dir, plan.metric)
        primary = outcomes.effects[outcomes.effects["metric"] == plan.metric] if len(outcomes.effects) else None
        counts = {} if primary is None else primary["verdict"].value_counts().to_dict()
        facts = {
            "model": next((axes.get("model") for axes in trials), None),
            "data sets": ", ".join(dict.fromkeys(str(axes["dataset"]) for axes in trials)),
            "trials": len(trials),
            **{verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS},
        }
        written = kinds_written(plan.run_dir)
        return cls(
            plan.name, plan.sweep_id, plan.summary_id(), plan.metric, tuple(keys), facts,
            trials="group" if "group" in written and "trial" not in written else "trial",
            lines="layer" if "layer" in written and "head" not in written else "head",
        )  # fmt: skip


def workspace(sweeps: Sequence[Sweep], entity: str, project: str) -> ws.Workspace:
    """Maps and ranking, lines over timesteps, layers, samples; the runs' table sorted by effect, sweeps pinned."""
    sections = [
        ws.Section(name="Which heads", panels=[*_maps(sweeps), *_rankings(sweeps)], is_open=True, pinned=True),
        ws.Section(name="Over the diffusion process", panels=_lines(sweeps), is_open=True),
        ws.Section(name="By layer, mode and data set", panels=_bars(sweeps), is_open=True),
        ws.Section(name="Samples", panels=[_samples()], is_open=True, layout_settings=_wide()),
        ws.Section(name="Effects", panels=[wr.WeavePanelSummaryTable(table_name=EFFECTS)], layout_settings=_wide()),
    ]
    if len(sweeps) > 1:
        sections.append(ws.Section(name="What differs", panels=[wr.RunComparer(diff_only="split")]))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(sweeps),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="timestep", max_runs=LINES),
        runset_settings=ws.RunsetSettings(
            filters=expr.Or(*(_only(sweep) for sweep in sweeps)),
            order=[expr.Ordering(expr.Summary("percent"), ascending=False)],
            run_settings={s.summary_id: ws.RunSettings(color=colour) for s, colour in zip(sweeps, COLOURS)},
            pinned_columns=["run:displayName", *VISIBLE],
            baseline_run=sweeps[0].summary_id,
            pinned_runs=[sweep.summary_id for sweep in sweeps],
        ),
    )


def report(sweeps: Sequence[Sweep], entity: str, project: str) -> wr.Report:
    """The same as a document, with a table of the sweeps at its head."""
    metric = sweeps[0].metric
    of_sweeps = _runsets(sweeps, entity, project, lambda _: "summary")
    of_heads = _runsets(sweeps, entity, project, lambda sweep: sweep.lines)
    of_trials = _runsets(sweeps, entity, project, lambda sweep: sweep.trials)
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.MarkdownBlock(text=_table(sweeps)),
        wr.P(text="A verdict holds for the whole grid: it is corrected for every trial of its sweep."),
        wr.H2(text="Which heads"),
        wr.PanelGrid(runsets=of_sweeps, panels=_laid_out([*_maps(sweeps), *_rankings(sweeps)], 12, 12)),
        wr.H2(text="Over the diffusion process"),
        wr.PanelGrid(runsets=of_heads, panels=_laid_out(_head_lines(sweeps), 12, 9)),
        wr.PanelGrid(runsets=of_sweeps, panels=_laid_out(_count_lines(sweeps), 12, 9)),
        wr.H2(text="By layer, mode and data set"),
        wr.PanelGrid(runsets=of_trials, panels=_laid_out(_bars(sweeps), 8, 8)),
        wr.H2(text="Samples"),
        wr.P(text="Baseline, ablated and difference, from the same seeds; the strongest effects first."),
        wr.PanelGrid(runsets=of_trials, panels=_laid_out([_samples()], 24, 16)),
        wr.H2(text="Effects"),
        wr.PanelGrid(runsets=of_sweeps, panels=_laid_out([wr.WeavePanelSummaryTable(table_name=EFFECTS)], 24, 16)),
    ]
    if len(sweeps) > 1:
        comparer = _laid_out([wr.RunComparer(diff_only="split")], 24, 12)
        blocks += [wr.H2(text="What differs"), wr.PanelGrid(runsets=of_sweeps, panels=comparer)]
    description = f"Percent degradation of {metric} by ablation of attention heads, layers and timesteps."
    return wr.Report(
        entity=entity, project=project, title=_title(sweeps), description=description, blocks=blocks, width="fluid"
    )


def _only(sweep: Sweep) -> Any:
    """The runs of a sweep. wandb_workspaces writes filters as text, which not every name survives."""
    plain = re.fullmatch(r"[A-Za-z0-9 _.,+-]+", sweep.name)
    return expr.Metric("Group") == sweep.name if plain else expr.Config("sweep_id") == sweep.id


def _title(sweeps: Sequence[Sweep]) -> str:
    return " against ".join(_words(sweep.name) for sweep in reversed(sweeps))[:128]


def _words(text: Any) -> str:
    """A name without the symbols that wandb_workspaces refuses in titles, as it does emoji."""
    return "".join("_" if unicodedata.category(letter)[0] in "SC" else letter for letter in str(text))


def _table(sweeps: Sequence[Sweep]) -> str:
    """Markdown; what a name contains is no markup."""
    columns = ["sweep", *sweeps[0].facts]
    rows = [[_escaped(value) for value in (sweep.name, *sweep.facts.values())] for sweep in sweeps]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows))


def _escaped(value: Any) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", str(value))


def _runsets(sweeps: Sequence[Sweep], entity: str, project: str, kind: Callable[[Sweep], str]) -> list[wr.Runset]:
    return [
        wr.Runset(
            entity=entity,
            project=project,
            name=f"{_words(sweep.name)} ({kind(sweep)})",
            filters=expr.And(_only(sweep), expr.Config("kind") == kind(sweep)),
            order=[wr.OrderBy(wr.SummaryMetric("percent"), ascending=False)],
            run_settings={sweep.summary_id: wr.RunSettings(color=colour)} if kind(sweep) == "summary" else {},
            pinned_columns=["run:displayName", *VISIBLE],
        )
        for sweep, colour in zip(sweeps, COLOURS)
    ]


def _maps(sweeps: Sequence[Sweep]) -> list[Any]:
    """One panel a map; of two sweeps it shows both, beside one another."""
    keys = dict.fromkeys(key for sweep in sweeps for key in sweep.keys)
    return [
        wr.MediaBrowser(
            title=", ".join(_words(part) for part in key), media_keys=[map_key(*key)], num_columns=len(sweeps)
        )
        for key in keys
    ]


def _rankings(sweeps: Sequence[Sweep]) -> list[Any]:
    metrics = dict.fromkeys(sweep.metric for sweep in sweeps)
    return [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": f"top/{metric}_table"}},
            chart_name="wandb/bar/v0",
            chart_fields={"label": "trial", "value": "percent"},
            chart_strings={"title": f"Strongest degradation of {metric}"},
        )
        for metric in metrics
    ]


def _lines(sweeps: Sequence[Sweep]) -> list[Any]:
    return [*_head_lines(sweeps), *_count_lines(sweeps)]


def _head_lines(sweeps: Sequence[Sweep]) -> list[Any]:
    metric = sweeps[0].metric
    line: dict[str, Any] = {"x": "timestep", "y": [f"{PREFIX}/{metric}"], "title_x": "timestep", "title_y": "percent"}
    spread: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    what = "Layers, mean of their heads" if any(sweep.lines == "layer" for sweep in sweeps) else "Heads"
    return [
        wr.LinePlot(title=f"{what}: degradation of {metric}", max_runs_to_show=LINES, **line),
        wr.LinePlot(title="Sweeps: mean and range over heads", groupby=wr.Config("sweep"), **line, **spread),
        wr.LinePlot(title="Layers: mean and range over heads", groupby=wr.Config("layer"), **line, **spread),
        wr.LinePlot(
            title="Heads: interval",
            x="timestep",
            y=[f"{INTERVAL}/{metric}/{end}" for end in ("ci_low", "ci_high")],
            max_runs_to_show=LINES,
        ),
    ]


def _count_lines(sweeps: Sequence[Sweep]) -> list[Any]:
    pairs = list(dict.fromkeys((dataset, mode) for sweep in sweeps for dataset, _, mode in sweep.keys))
    return [
        wr.LinePlot(title=title, x="timestep", y=[f"{key}/{dataset}/{mode}" for dataset, mode in pairs])
        for title, key in (("Degraded heads", DEGRADED), ("Strongest head, percent", HIGHEST))
    ]


def _bars(sweeps: Sequence[Sweep]) -> list[Any]:
    """Of a run per layer and window there is no more than these to group by, and of its trials the strongest."""
    by_group = any(sweep.trials == "group" for sweep in sweeps)
    percents: list[Any] = [f"{sweeps[0].metric}/percent"] if any(sweep.trials == "trial" for sweep in sweeps) else []
    percents += [f"{sweeps[0].metric}/percent_max"] if by_group else []
    axes = ("layer", "window", "sweep") if by_group else ("layer", "head", "window", "ablation", "dataset", "sweep")
    grouped = [
        wr.BarPlot(
            title=f"By {axis}: mean and range" + (" of the strongest trials" if by_group else ""),
            metrics=percents,
            groupby=wr.Config(axis),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for axis in axes
    ]
    scatter = wr.ScatterPlot(
        title="The strongest trials" if by_group else "Every trial",
        x=wr.SummaryMetric("timestep"),
        y=wr.SummaryMetric("percent"),
        z=wr.SummaryMetric("q"),
    )
    columns = ("layer_index", "window") if by_group else ("layer_index", "head", "window", "ablation", "dataset")
    shown: list[Any] = [*(wr.Config(column) for column in columns), wr.SummaryMetric("percent")]
    parallel = wr.ParallelCoordinatesPlot(
        title="From the axes to the effect",
        columns=[wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in shown],
    )
    return [*grouped, scatter, parallel]


def _samples() -> Any:
    return wr.MediaBrowser(
        title="baseline | ablated | difference",
        media_keys=["samples"],
        num_columns=2,
        mode="gallery",
        gallery_axis="run",
    )


def _wide() -> ws.SectionLayoutSettings:
    return ws.SectionLayoutSettings(columns=1, rows=1)


def _laid_out(panels: list[Any], width: int, height: int) -> list[Any]:
    """Side by side, as many as the 24 columns of a report have room for."""
    in_row = 24 // width
    for i, panel in enumerate(panels):
        panel.layout = wr.Layout(x=i % in_row * width, y=i // in_row * height, w=width, h=height)
    return panels
