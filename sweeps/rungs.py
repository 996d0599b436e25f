"""The rungs of a search: what a candidate is measured on, one after the other, and when it is dropped. No Ray here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from circuits.effect_tables import gains
from sweeps.candidates import Candidate, Space, search_images, search_space
from sweeps.config import Config
from sweeps.leases import Lease
from sweeps.plan import Subject, Trial, make_trial
from sweeps.records import RunDirectory
from sweeps.run import Runner, RunnerSpec, load_subject


def rungs(config: Config) -> tuple[int, ...]:
    """Numbers of images at which a candidate is judged: ``grace_images``, then ``reduction`` times as many, to all."""
    search, found = config.sweep.search, []
    images = search.grace_images
    while images < search_images(config):
        found.append(images)
        images *= search.reduction
    return (*found, search_images(config))


def searched_trial(config: Config, subject: Subject, space: Space, candidate: Candidate, images: int) -> Trial:
    """A rung of a candidate; without samples to look at, since most candidates are dropped."""
    window = space.windows[candidate.window_index]
    return make_trial(
        config, subject, candidate.dataset, "denoise", candidate.intervention, window, candidate.window_index,
        level="set", images=images, samples=0, phase="search",
    )  # fmt: skip


def confirming_trial(config: Config, subject: Subject, space: Space, candidate: Candidate) -> Trial:
    """The candidate on the images that follow those of the search, with their own noise."""
    window, images = space.windows[candidate.window_index], search_images(config)
    return make_trial(
        config, subject, candidate.dataset, "denoise", candidate.intervention, window, candidate.window_index,
        level="set", images=images, first_image=images, phase="confirm",
    )  # fmt: skip


def known_scores(directory: RunDirectory, metric: str) -> dict[str, float]:
    """Mean log ratio of every recorded trial, the same number that its runner reported."""
    measured = directory.measurements()
    rows = measured[measured["metric"] == metric].sort_values("unit")
    return {
        str(trial_id): _score(gains(part["ablated"].to_numpy(), part["baseline"].to_numpy()))
        for trial_id, part in rows.groupby("trial_id", sort=False)
    }


def _score(g: np.ndarray) -> float:
    """Mean log ratio, of the values as precise as a worker reports them."""
    return float(g.astype(np.float32).mean(dtype=np.float64))


class CandidateRunner:
    """Measures candidates, a rung at a time, with a model that stays loaded; nothing that the ledger holds.

    Args:
        known: scores that the ledger held before, where it is not on this machine.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        config: Config,
        subject: Subject | None = None,
        known: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self._subject = subject or load_subject(spec.subject)
        self._space = search_space(config, self._subject)
        self._runner = Runner(spec, self._subject)
        self._known = {**known, **known_scores(RunDirectory(Path(spec.run_dir)), spec.metric)}

    def measure(self, plain: dict[str, Any], images: int) -> dict[str, float] | None:
        """``images``, ``score`` and the ``rows`` it took; None where the candidate cannot be measured."""
        candidate = Candidate.from_plain(plain)
        trial = searched_trial(self._config, self._subject, self._space, candidate, images)
        rows = 0
        if trial.trial_id not in self._known:
            outcome = self._runner.run(Lease.of([trial]))
            if outcome.failures:
                return None
            self._known[trial.trial_id] = _score(outcome.gains[trial.trial_id])
            rows = outcome.rows
        return {"images": images, "score": self._known[trial.trial_id], "rows": rows}


class Halving:
    """ASHA's rule (Li et al., arXiv 1810.05934) as Tune has it, for one candidate at a time.

    A candidate goes on if it is not below the best 1 / ``reduction`` of those that were at its rung before.
    """

    def __init__(self, reduction: int) -> None:
        self._share = 100 * (1 - 1 / reduction)
        self._seen: dict[int, list[float]] = {}

    def goes_on(self, images: int, score: float) -> bool:
        before = self._seen.setdefault(images, [])
        strong = not before or score >= float(np.percentile(before, self._share))
        before.append(score)
        return strong
