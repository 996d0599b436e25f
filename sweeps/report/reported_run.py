"""The parts of a run that the report shows, checked once at the door."""

import difflib
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.comparison_names import DATA_SET_CONTRAST
from sweeps.mode_names import mode_names
from sweeps.phases import COMPARED
from sweeps.records import RunDirectory, RunDirectoryError
from sweeps.report.printable import all_printable, printable

VERDICTS = ("degraded", "improved", "negligible", "inconclusive")
CALLED = ("degraded", "improved")  # the verdicts that are claims of an effect
STOPPED = ("decided", "futile")

TRIAL_COLUMNS = (
    "trial_id", "dataset", "protocol", "level", "layer", "layer_index", "head", "stream", "mode", "strength",
    "window_index", "t_start", "t_end",
)  # fmt: skip
EFFECT_COLUMNS = (
    "trial_id", "metric", "n", "mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p", "q", "verdict",
)  # fmt: skip
COMPARISON_COLUMNS = ("name", "metric", "group", "estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b")
DIAGNOSTIC_COLUMNS = (
    "trial_id", "metric", "skewness", "half_a", "half_b", "rank", "rank_low", "rank_high", "ranked", "rank_images",
)  # fmt: skip
FAILURE_COLUMNS = ("trial_id", "error", "traceback", "attempts")


# What makes two trials the same cell, whatever the data set and the protocol.
SITE_KEYS = ["level", "layer_index", "head", "stream", "sites"]
CELL_KEYS = [*SITE_KEYS, "variant", "window_index"]


@dataclass(frozen=True)
class Stats:
    """What was registered under `stats` before the run; negligible is within a factor of 1 + margin.

    statistic: obf, sign or betting where trials stop early, none where each is measured on all of its images. The rest
    belongs to the stopping rule: see StoppingRule.
    """

    metric: str = "noise_mse"
    margin: float = 0.05
    alpha: float = 0.05
    statistic: str = "none"
    correction: str | None = None
    first: int = 16
    batch: int = 16
    clear: float = 0.8
    futility: float | None = None

    @property
    def log_margin(self) -> float:
        return math.log1p(self.margin)


@dataclass(frozen=True)
class ReportedRun:
    """
    Attributes:
        trials: the ablations; controls: random subspaces, and the unablated model measured once more (strength 0).
        stats: what was registered; its statistic is "none" where the rule governs no trial.
    """

    path: Path
    config: dict[str, Any]
    run: dict[str, Any]
    trials: pd.DataFrame
    controls: pd.DataFrame
    effects: pd.DataFrame
    comparisons: pd.DataFrame
    diagnostics: pd.DataFrame
    failures: pd.DataFrame
    stats: Stats

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Effects on the primary metric with the columns of their trials, the strongest degradation first.

        One protocol only: `denoise` where it was run, so that no cell is there twice. Of a search, what it confirmed.
        `most`: images that a trial could have used, `n` those that it did.
        """
        metric_effects = self.effects[self.effects["metric"] == self.stats.metric]
        joined = metric_effects.merge(self.trials, on="trial_id", how="left", validate="one_to_one")
        if "phase" in joined:
            joined = joined[joined["phase"] != "search"]  # what a search chose from is no finding
        protocols = joined["protocol"].unique().tolist()
        if len(protocols) > 1:
            joined = joined[joined["protocol"] == ("denoise" if "denoise" in protocols else protocols[0])]
        per_image = self.diagnostics[self.diagnostics["metric"] == self.stats.metric].drop(columns="metric")
        joined = joined.merge(per_image, on="trial_id", how="left", validate="one_to_one")
        most = joined["images"] if self.stops_early else joined["n"]
        most = pd.to_numeric(most, errors="coerce").where(lambda images: images >= joined["n"], joined["n"])
        order = joined.assign(called=joined["verdict"] == "degraded", most=most.clip(upper=2**31).astype(int))
        order = order.sort_values(["called", "mean_log_ratio"], ascending=False, kind="stable")
        return order.drop(columns="called").reset_index(drop=True)

    @property
    def waiting(self) -> pd.Series:
        """Which cells neither have stopped nor have seen all of their images: the sweep is not through with them."""
        return self.cells["stopped"].isna() & (self.cells["n"] < self.cells["most"])

    @property
    def through(self) -> set[str]:
        """Trials with an effect that need no further images, by a verdict or since they have them all."""
        return set(self.effects["trial_id"]) - set(self.cells.loc[self.waiting, "trial_id"])

    @property
    def stops_early(self) -> bool:
        return self.stats.statistic != "none"

    @cached_property
    def data_set_contrasts(self) -> pd.DataFrame:
        return self.comparisons[self.comparisons["name"].astype(str).str.startswith(DATA_SET_CONTRAST)]

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        return tuple(self.cells["dataset"].drop_duplicates().sort_values(key=self._data_order))

    def _data_order(self, names: pd.Series) -> pd.Series:
        listed = list(mapping(self.run.get("data")))
        return names.map(lambda name: (listed.index(name) if name in listed else len(listed), name))


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: optional parts of run.json and config.yaml may be absent."""
    return value if isinstance(value, dict) else {}


def read_run(path: Path) -> ReportedRun:
    """Read what a report needs.

    Raises:
        RunDirectoryError: a file is missing, or does not hold what it should.
    """
    directory = RunDirectory(Path(path))
    required = (directory.config, directory.run, directory.trials, directory.effects)
    missing = [file.name for file in required if not file.is_file()]
    if missing:
        raise RunDirectoryError(f"no report without {', '.join(missing)} in {directory.path}")
    config = mapping(all_printable(directory.read_config()))
    trials = _table(directory.trials, TRIAL_COLUMNS).drop_duplicates("trial_id")
    effects = _table(directory.effects, EFFECT_COLUMNS).drop_duplicates(["trial_id", "metric"])
    phase = trials["phase"] if "phase" in trials else pd.Series("grid", index=trials.index)
    is_control, compared = phase == "control", phase.isin(COMPARED)
    stats = _stats(mapping(config.get("stats")), trials)
    effects = effects[~effects["trial_id"].isin(trials.loc[compared, "trial_id"])]
    _check_effects(effects, trials, stats)
    return ReportedRun(
        path=directory.path,
        config=config,
        run=mapping(all_printable(directory.read_run())),
        trials=_with_variant(trials[~compared]),
        controls=_named_controls(trials[is_control]),
        effects=effects if "stopped" in effects else effects.assign(stopped=None),
        comparisons=_optional(directory.comparisons, COMPARISON_COLUMNS),
        diagnostics=_optional(directory.diagnostics, DIAGNOSTIC_COLUMNS).drop_duplicates(["trial_id", "metric"]),
        failures=_optional(directory.failures, FAILURE_COLUMNS),
        stats=stats,
    )


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    table = RunDirectory(path.parent).read_frame(path)
    absent = [column for column in columns if column not in table]
    if absent:
        raise RunDirectoryError(f"{path} lacks the columns {', '.join(absent)}; it has {', '.join(table.columns)}")
    return tidied(table)


def tidied(table: pd.DataFrame) -> pd.DataFrame:
    """Without infinite numbers, which have no place in a figure, as NaN has none; and with printable texts."""
    for name, kind in table.dtypes.items():
        if pd.api.types.is_float_dtype(kind):
            table[name] = table[name].replace([math.inf, -math.inf], math.nan)
        elif not pd.api.types.is_numeric_dtype(kind):
            table[name] = table[name].map(printable, na_action="ignore")
    return table


def _optional(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    return _table(path, columns) if path.is_file() else pd.DataFrame(columns=list(columns))


def _stats(section: dict[str, Any], trials: pd.DataFrame) -> Stats:
    stats = Stats(**{key.name: section[key.name] for key in fields(Stats) if section.get(key.name) is not None})
    # A rule governs the grid, where it looks at the error of images; a search, and protocol sample, it does not.
    governed = {"images", "phase"} <= set(trials) and (
        (trials["protocol"] == "denoise") & (trials["phase"] == "grid") & (trials["images"] >= 2)
    ).any()
    return stats if governed else replace(stats, statistic="none")


def _check_effects(effects: pd.DataFrame, trials: pd.DataFrame, stats: Stats) -> None:
    unplanned = set(effects["trial_id"]) - set(trials["trial_id"])
    if unplanned:
        raise RunDirectoryError(
            f"effects.parquet has {len(unplanned)} trials that trials.parquet lacks, such as {min(unplanned)}"
        )
    strange = set(effects["verdict"].dropna()) - set(VERDICTS)
    if strange:
        raise RunDirectoryError(f"expected the verdicts {', '.join(VERDICTS)}; got {', '.join(sorted(strange))}")
    metrics = sorted(set(effects["metric"]))
    if metrics and stats.metric not in metrics:
        near = difflib.get_close_matches(stats.metric, metrics, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise RunDirectoryError(
            f"stats.metric={stats.metric} is not in effects.parquet, which has {', '.join(metrics)}{hint}"
        )


def _with_variant(trials: pd.DataFrame) -> pd.DataFrame:
    """Add `variant`: the mode, with its strength where the sweep ran that mode at several; `sites` as plain text,
    of a block or stage its path;
    no stream where there is only one."""
    several = trials.groupby("mode")["strength"].transform("nunique") > 1
    strengths = pd.to_numeric(trials["strength"]).map("{:g}".format)
    modes = mode_names(trials)
    variant = modes.where(~several, modes + " " + strengths)
    sites = trials["sites"] if "sites" in trials else pd.Series([None] * len(trials), index=trials.index)
    text = sites.map(lambda site: "" if site is None or not hasattr(site, "__len__") else ", ".join(map(str, site)))
    text = text.where(~trials["level"].isin(["block", "stage"]), trials["layer"])
    stream = trials["stream"].fillna("").astype(object)
    stream = stream if stream.nunique() > 1 else ""
    return trials.assign(variant=variant, sites=text.astype(object).map(printable), stream=stream)


def _named_controls(controls: pd.DataFrame) -> pd.DataFrame:
    """Controls with the columns of ablations, so that a failed one can be named."""
    draw = controls["draw"] if "draw" in controls else pd.Series(0, index=controls.index)
    drawn = controls["strength"] > 0
    return controls.assign(
        variant=("random subspace " + draw.astype(str)).astype(object).where(drawn, "unablated, once more"),
        level=controls["level"].astype(object).where(drawn, "model"),
        sites=pd.Series("", index=controls.index, dtype=object).where(drawn, "model"),
        stream="",
    )
