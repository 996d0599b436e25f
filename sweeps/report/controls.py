"""Heads against random subspaces of their size, and the unablated model against itself."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from sweeps.comparison_names import NOISE_FLOOR, WORSE_ON_IMAGES, WORSE_THAN_CONTROLS
from sweeps.report import wording
from sweeps.report.reported_run import ReportedRun

# Names in comparisons.parquet.

PLACE = ["dataset", "window_index", "layer_index"]  # which random subspaces a head is compared with


@dataclass(frozen=True)
class Controls:
    """
    Attributes:
        heads: a row for each zeroed head with a contrast, the furthest above its controls first: the columns of its
            trial; `estimate`, `ci_low`, `ci_high` (mean log ratio of the head less that of its controls); `p`, `q` over
            images; `p_controls`; `n_a` images, `n_b` controls; `percent` and `verdict` of the head's own effect.
        drawn: a row for each control: its trial, and `mean_log_ratio` (NaN without diagnostics).
        floor: largest |log ratio| of an image measured twice without ablation; NaN where it was not.
        alpha: level of the claims.
    """

    heads: pd.DataFrame
    drawn: pd.DataFrame
    floor: float
    alpha: float

    @cached_property
    def worse(self) -> pd.DataFrame:
        """The heads that are worse than the average of their controls, over images."""
        return self.heads[self.heads["q"] <= self.alpha]

    @property
    def resolution(self) -> float:
        """The least p over controls that any of these heads could have had."""
        return float(1 / (self.heads["n_b"].max() + 1))

    @property
    def number(self) -> str:
        """``8``, or ``6 to 8`` random subspaces a data set, window and layer."""
        return wording.between(self.heads["n_b"])

    @property
    def images(self) -> str:
        return wording.between(self.heads["n_a"])


def is_least(heads: pd.DataFrame) -> pd.Series:
    """Whether a head is worse than each of its controls: p over controls is as small as it can be."""
    return heads["p_controls"] * (heads["n_b"] + 1) < 1.5


def read_controls(run: ReportedRun) -> Controls | None:
    """None where the run has no controls, or nothing was compared with them."""
    compared = run.comparisons
    heads = _contrasts(run)
    floors = compared.loc[compared["name"] == NOISE_FLOOR, "estimate"].astype(float)
    if heads.empty and floors.empty:
        return None
    drawn = run.controls[run.controls["strength"] > 0]
    return Controls(
        heads=heads,
        drawn=drawn.assign(mean_log_ratio=drawn["trial_id"].map(_means(run))),
        floor=float(floors.max()) if len(floors) else math.nan,
        alpha=run.stats.alpha,
    )


def control_sentences(controls: Controls | None) -> list[str]:
    """How many heads called degraded are worse than a random subspace as well."""
    if controls is None or controls.heads.empty:
        return []
    degraded = controls.heads[controls.heads["verdict"] == "degraded"]
    worse = degraded[degraded["q"] <= controls.alpha]
    if degraded.empty:
        return ["No zeroed head is called degraded, so none needs to be told from a random subspace."]
    also = f"{len(worse):,} {'is' if len(worse) == 1 else 'are'} also worse than removing as much of a random subspace"
    least = int(is_least(worse).sum())
    every = f"; {least:,} of these {'is' if least == 1 else 'are'} worse than every one of the {controls.number}"
    return [
        f"Of {wording.count(len(degraded), 'trial')} with a zeroed head that {_are(degraded)} called degraded, {also} "
        f"(the average of {controls.number}, q over images ≤ {100 * controls.alpha:g}%){every if len(worse) else ''}."
    ]


def floor_sentence(controls: Controls, metric: str, log_margin: float) -> str:
    if math.isnan(controls.floor):
        return ""
    if controls.floor == 0:
        return (
            f"Noise floor: measured a second time, in other batches, the unablated model had the same {metric} on "
            "every image, to the last bit."
        )
    beyond = " That is more than the margin: no verdict here can be trusted." if controls.floor >= log_margin else ""
    return (
        f"Noise floor: measured a second time, in other batches, the unablated model’s {metric} differed on no image "
        f"by more than a log ratio of {wording.probability(controls.floor)}; effects of that size are rounding.{beyond}"
    )


def _are(rows: pd.DataFrame) -> str:
    return "is" if len(rows) == 1 else "are"


def _contrasts(run: ReportedRun) -> pd.DataFrame:
    """Both claims about each head beside its trial and its own effect."""
    claims = {
        name: run.comparisons[run.comparisons["name"] == name].set_index("group")
        for name in (WORSE_ON_IMAGES, WORSE_THAN_CONTROLS)
    }
    over_images = claims[WORSE_ON_IMAGES][["estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"]]
    over_controls = claims[WORSE_THAN_CONTROLS]["p"].rename("p_controls")
    cells = run.cells[(run.cells["level"] == "head") & (run.cells["mode"] == "zero") & (run.cells["strength"] == 1)]
    place = cells.drop(columns=["ci_low", "ci_high", "p", "q"]).assign(group=_group(cells))
    found = place.merge(over_images.join(over_controls).reset_index(), on="group", validate="one_to_one")
    return found.sort_values("estimate", ascending=False, kind="stable")


def _group(cells: pd.DataFrame) -> pd.Series:
    """What comparisons.parquet calls the contrast of a head with its controls."""
    layer, head, window = (cells[name].astype(str) for name in ("layer_index", "head", "window_index"))
    return "layer " + layer + " head " + head + " | zero | window " + window + " | " + cells["dataset"].astype(str)


def _means(run: ReportedRun) -> pd.Series:
    """Mean log ratio by trial, from its halves: every other image, of which an odd number gives the first one more."""
    halves = run.diagnostics[run.diagnostics["metric"] == run.stats.metric].set_index("trial_id")
    images = run.controls.set_index("trial_id")["images"] if "images" in run.controls else pd.Series(dtype=float)
    n = images.reindex(halves.index).astype(float)
    first = np.ceil(n / 2)
    return (first * halves["half_a"].astype(float) + (n - first) * halves["half_b"].astype(float)) / n
