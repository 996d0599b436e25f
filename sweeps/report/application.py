"""What the page's application shows, as data for its script: trials, their effects, images, samples and heads."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweeps.records import RunDirectory
from sweeps.report import wording
from sweeps.report.cell_grid import WHOLE_LAYER
from sweeps.report.columns import counts, floats, names, numbers
from sweeps.report.controls import Controls
from sweeps.report.head_views import head_views
from sweeps.report.image_values import BUDGET_BYTES, ImageValues, image_values
from sweeps.report.profiled import Profiled
from sweeps.report.reported_run import STOPPED, VERDICTS, ReportedRun
from sweeps.report.sample_grids import SampleGrids, sample_grids
from sweeps.report.theme import BIN_EDGES, BIN_NAMES

MAX_TRIALS = 30_000  # the strongest; the others are in effects.parquet
MAX_EFFECTS = 60_000  # beyond that, only the primary metric
MANY_TRIALS = 2_000  # beyond which samples and values of images have half the room, so that the page stays small
SAMPLE_BYTES = 3_400_000


@dataclass(frozen=True)
class Application:
    """
    Attributes:
        data: for the script. trials: how many are here; available: how many have an effect. notes: what is not here.
    """

    data: dict[str, Any]
    trials: int
    available: int
    notes: tuple[str, ...]


def run_application(run: ReportedRun, profiled: Profiled | None, controls: Controls | None) -> Application | None:
    """None where no trial has an effect yet."""
    trials = shown_trials(run)
    if trials.empty:
        return None
    available = len(trials)
    trials = trials.head(MAX_TRIALS)
    effects = run.effects[run.effects["trial_id"].isin(trials["trial_id"])]
    metrics = [run.stats.metric, *sorted(set(effects["metric"].astype(str)) - {run.stats.metric})]
    listed = metrics if len(effects) <= MAX_EFFECTS else metrics[:1]
    share = 2 if len(trials) > MANY_TRIALS else 1
    values = image_values(RunDirectory(run.path), trials, listed, BUDGET_BYTES // share)
    grids = sample_grids(run, trials, SAMPLE_BYTES // share)
    data = {
        "kind": "run",
        "metric": run.stats.metric,
        "margin": run.stats.margin,
        "alpha": run.stats.alpha,
        "confidence": wording.CONFIDENCE,
        "statistic": run.stats.statistic,
        "bins": {"edges": list(BIN_EDGES), "names": list(BIN_NAMES)},
        "trials": trial_columns(trials, run),
        "effects": {metric: effect_columns(effects, metric, trials["trial_id"]) for metric in listed},
        "images": values.data,
        "images_note": _images_note(values),
        "samples": grids.uris,
        "samples_note": grids.note,
        "heads": head_views(profiled),
        "controls": _controls(controls, trials["trial_id"]),
    }
    return Application(data, len(trials), available, tuple(_notes(trials, available, metrics, listed, values, grids)))


def shown_trials(run: ReportedRun) -> pd.DataFrame:
    """Trials with an effect on some metric, with their effect on the primary one: in the order of the ranking."""
    others = run.trials[
        run.trials["trial_id"].isin(run.effects["trial_id"]) & ~run.trials["trial_id"].isin(run.cells["trial_id"])
    ]
    if "phase" in others:
        others = others[others["phase"] != "search"]
    if others.empty:
        return run.cells
    return pd.concat([run.cells.astype(object), others.astype(object)], ignore_index=True)


def trial_columns(trials: pd.DataFrame, run: ReportedRun) -> dict[str, Any]:
    """What a trial is, and what is known of it on the primary metric only; modes and data sets in the run's order."""
    found = {
        "id": trials["trial_id"].astype(str).tolist(),
        "site": names(wording.site(trial) for trial in trials.itertuples()),
        "level": names(trials["level"], ("head", "layer")),
        "path": names(trials["layer"]),
        "layer": counts(trials["layer_index"]),
        "head": numbers(pd.to_numeric(trials["head"], errors="coerce").fillna(WHOLE_LAYER), "i4"),
        "stream": names(trials["stream"]),
        "mode": names(trials["variant"], run.trials["variant"].unique()),
        "dataset": names(trials["dataset"], run.datasets),
        "protocol": names(trials["protocol"]),
        "window": counts(trials["window_index"]),
        "window_text": names(wording.window(trial) for trial in trials.itertuples()),
        "t_start": floats(trials["t_start"]),
        "t_end": floats(trials["t_end"]),
    }
    for name in ("rank", "rank_low", "rank_high", "ranked", "rank_images", "skewness", "half_a", "half_b", "most"):
        if name in trials:
            found[name] = floats(trials[name], "f4")
    return found


def effect_columns(effects: pd.DataFrame, metric: str, trial_ids: pd.Series) -> dict[str, Any]:
    """The rows of effects.parquet on a metric, each with the place of its trial."""
    place = {trial_id: row for row, trial_id in enumerate(trial_ids)}
    here = effects[effects["metric"] == metric].drop_duplicates("trial_id")
    found: dict[str, Any] = {"trial": counts(here["trial_id"].map(place)), "n": counts(here["n"])}
    found |= {name: floats(here[name]) for name in ("percent", "ci_low", "ci_high", "p", "q")}
    found |= {name: floats(here[name], "f4") for name in ("mean_log_ratio", "d_z")}
    return found | {"verdict": names(here["verdict"], VERDICTS), "stopped": names(here["stopped"], ("", *STOPPED))}


def _controls(controls: Controls | None, trial_ids: pd.Series) -> dict[str, Any] | None:
    """Each zeroed head against the random subspaces of its layer and window."""
    if controls is None or controls.heads.empty:
        return None
    place = {trial_id: row for row, trial_id in enumerate(trial_ids)}
    heads = controls.heads[controls.heads["trial_id"].isin(place)]
    found = {name: floats(heads[name]) for name in ("estimate", "ci_low", "ci_high", "p", "q", "p_controls")}
    return found | {
        "trial": counts(heads["trial_id"].map(place)),
        "images": counts(heads["n_a"]),
        "controls": counts(heads["n_b"]),
    }


def _images_note(values: ImageValues) -> str:
    if values.too_many:
        return "The values image by image are in records/: they are too many for this page."
    if values.first is not None:
        return f"The first {values.first:,} images of a trial are here; all are in records/."
    return ""


def _notes(
    trials: pd.DataFrame, available: int, metrics: list[str], listed: list[str], values: ImageValues, grids: SampleGrids
) -> list[str]:
    notes = []
    if len(trials) < available:
        notes.append(
            f"The {len(trials):,} strongest of {available:,} trials are here; all of them are in effects.parquet."
        )
    if len(listed) < len(metrics):
        notes.append(f"Only {listed[0]} is here; {wording.listing(metrics[1:])} are in effects.parquet.")
    note = _images_note(values)
    if values.left_out and not values.too_many:
        note += f" Values of single images on {wording.listing(values.left_out)} are in records/."
    if note:
        notes.append(note.strip())
    if len(grids.uris) < grids.available:
        notes.append(f"Samples: {grids.note[0].lower()}{grids.note[1:]}")
    return notes
