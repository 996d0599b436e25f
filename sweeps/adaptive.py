"""Adaptive search for the sets of heads with the strongest joint effect, and their confirmation on images it never saw.

On Ray Tune a candidate is a Tune trial that is measured on more and more images and dropped by ASHA; in process, one
candidate after the other, by the same rule. Either way a rung is an ordinary trial in the ledger, whose id names the
images it was measured on: the trial of a candidate that was dropped has fewer of them.

The best of many is too good on average, and so is a set that survived because of its images. So the numbers of the
search are exploratory, and what is reported is measured again, on as many fresh images and noises (see
`sweeps.aggregate`). What to confirm is written to run.json before the first fresh image is measured, and stays.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rich.console import Console

from sweeps.candidates import Candidate, Evolution, search_plan, search_space
from sweeps.config import Config
from sweeps.plan import Plan, Subject, Trial
from sweeps.records import RunDirectory
from sweeps.run import RunnerSpec
from sweeps.rungs import CandidateRunner, Halving, confirming_trial, known_scores, rungs, searched_trial
from sweeps.schedule import clusters


@dataclass(frozen=True)
class Searched:
    """What a search left behind: the trials it chose from and those that confirm its choice."""

    plan: Plan
    interrupted: bool


class Search:
    """The state of a search: what was proposed, and its scores (mean log ratio) by candidate and number of images.

    Args:
        facts: what run.json holds of it: the candidates that cannot be measured, and those chosen, if that is over.
    """

    def __init__(self, config: Config, subject: Subject, facts: Mapping[str, Any]) -> None:
        self.config = config
        self.subject = subject
        self.space = search_space(config, subject)
        self.rungs = rungs(config)
        self.scores: dict[Candidate, dict[int, float]] = {}
        self.failed = {Candidate.from_plain(plain) for plain in facts.get("failed", [])}
        self.selected: list[Candidate] | None = None
        if "selected" in facts:
            self.selected = [Candidate.from_plain(plain) for plain in facts["selected"]]
        self.rows = 0
        search = config.sweep.search
        self.evolution = Evolution(
            self.space, candidates=search.candidates, generation=search.generation, seed=config.sweep.seed
        )

    def searched(self, candidate: Candidate, images: int) -> Trial:
        """A rung of the candidate."""
        return searched_trial(self.config, self.subject, self.space, candidate, images)

    def propose(self) -> list[Candidate]:
        """The next generation, without what is known to fail; empty when the search is over."""
        while fresh := self.evolution.next_generation():
            usable = [candidate for candidate in fresh if candidate not in self.failed]
            for candidate in self.failed.intersection(fresh):
                self.evolution.tell(candidate, None)
            if usable:
                return usable
        return []

    def learn(self, candidate: Candidate, images: int, score: float) -> None:
        """A rung of a candidate came back."""
        self.scores.setdefault(candidate, {})[images] = score
        if images == self.rungs[0]:
            self.evolution.tell(candidate, score)

    def give_up(self, candidate: Candidate) -> None:
        """The candidate could not be measured even at the first rung."""
        self.failed.add(candidate)
        self.evolution.tell(candidate, None)

    def recall(self, known: Mapping[str, float]) -> None:
        """Propose again what the ledger holds: which candidates there were follows from the scores of those before."""
        while not self.evolution.waiting and (fresh := self.propose()):
            for candidate, images in product(fresh, self.rungs):
                score = known.get(self.searched(candidate, images).trial_id)
                if score is not None:
                    self.learn(candidate, images, score)

    def best(self, count: int) -> list[Candidate]:
        """The strongest of those that reached the most images."""
        reached = {candidate: max(scores.items()) for candidate, scores in self.scores.items()}
        return sorted(reached, key=lambda c: (-reached[c][0], -reached[c][1], c))[:count]

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        found = {"failed": [candidate.plain() for candidate in sorted(self.failed)]}
        if self.selected is not None:
            found["selected"] = [candidate.plain() for candidate in self.selected]
        return found

    def plan(self) -> Plan:
        """Each candidate at the most images it reached, which include those of lower rungs; then the confirmations."""
        tried = [c for c in self.evolution.proposed if c in self.scores or c in self.failed]
        searched = [self.searched(c, max(self.scores.get(c, {self.rungs[0]: 0}))) for c in tried]
        confirming = [confirming_trial(self.config, self.subject, self.space, c) for c in self.selected or ()]
        return replace(search_plan(self.config, self.subject), trials=(*searched, *confirming))

    def said(self) -> str:
        """One line for the terminal."""
        best = self.best(1)
        tried = f"{len(self.scores)} of {self.evolution.total} sets searched"
        if not best:
            return tried
        images, score = max(self.scores[best[0]].items())
        label = self.searched(best[0], images).label
        return f"{tried}; strongest so far {100 * math.expm1(score):+.0f}% on {images} images: {label}"


def recall(config: Config, subject: Subject, directory: RunDirectory) -> Search:
    """What a run directory holds of a search."""
    search = Search(config, subject, directory.read_run().get("search", {}))
    search.recall(known_scores(directory, config.stats.metric))
    return search


def run_search(
    config: Config, subject: Subject, spec: RunnerSpec, directory: RunDirectory, console: Console, stop: threading.Event
) -> Searched:
    """Search, or recall a search that is over; writes trials.parquet with what is to be confirmed.

    The confirmations are trials like any other, left to the driver. Started again, it measures what the ledger lacks.
    """
    recalled = recall(config, subject, directory)
    directory.write_frame(directory.trials, recalled.plan().frame())
    if recalled.selected is not None:
        return Searched(recalled.plan(), interrupted=False)
    started = time.monotonic()
    search = Search(config, subject, directory.read_run().get("search", {}))
    console.print(_opening(search, len(recalled.scores)), highlight=False, soft_wrap=True)
    if config.cluster.name == "inline":
        _search_inline(search, CandidateRunner(spec, config, subject), console, stop)
    else:
        _search_on_ray(search, spec, directory, console, stop)
    if not stop.is_set():
        search.selected = search.best(config.sweep.search.confirm)
    directory.write_frame(directory.trials, search.plan().frame())
    _record(search, time.monotonic() - started, directory)
    return Searched(search.plan(), interrupted=stop.is_set())


def _record(search: Search, seconds: float, directory: RunDirectory) -> None:
    """In run.json: what is confirmed, once that is decided, and what the search cost."""
    before = directory.read_run()
    counts = before.get("counts", {})
    directory.write_run(
        {
            "search": search.facts(),
            "seconds": round(before.get("seconds", 0) + seconds, 1),
            "counts": {**counts, "rows": counts.get("rows", 0) + search.rows},
        }
    )


def _opening(search: Search, recorded: int) -> str:
    space, images, confirm = search.space, search.rungs[-1], search.config.sweep.search.confirm
    known = f" {recorded} of them are recorded already." if recorded else ""
    return (
        f"Searching {search.evolution.total} of {space.size():,} sets of up to {space.max_heads} heads, on "
        f"{', '.join(map(str, search.rungs))} images; the best {confirm} are then measured again on "
        f"{images} fresh images, {images} to {2 * images - 1}.{known}"
    )


def _search_inline(search: Search, runner: CandidateRunner, console: Console, stop: threading.Event) -> None:
    """Without Ray: the candidates in order, each as far as it goes."""
    halving = Halving(search.config.sweep.search.reduction)
    while fresh := search.propose():
        for candidate in fresh:
            for images in search.rungs:
                if stop.is_set():
                    return
                found = runner.measure(candidate.plain(), images)
                if found is None:
                    break
                search.rows += int(found["rows"])
                search.learn(candidate, images, found["score"])
                if not halving.goes_on(images, found["score"]):
                    break
            if candidate not in search.scores:
                search.give_up(candidate)
        console.print(search.said(), highlight=False, soft_wrap=True)


def _search_on_ray(
    search: Search, spec: RunnerSpec, directory: RunDirectory, console: Console, stop: threading.Event
) -> None:
    clusters.connect(search.config.cluster)
    try:
        from sweeps.search import search_on_tune  # Ray reads its settings when it is first imported: not before connect

        search_on_tune(search, spec, directory, console, stop)
    finally:
        clusters.disconnect()
