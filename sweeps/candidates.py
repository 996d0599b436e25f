"""What an adaptive search may try, and in which order: sets of heads x windows x strengths x modes x data sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, TypeVar

import numpy as np

from circuits.engine import Window
from circuits.interventions import Intervention, Mode, Site
from circuits.seeds import numpy_generator
from sweeps.config import Config, ConfigError, as_indices, as_list
from sweeps.mode_checks import check_modes
from sweeps.plan import (
    Plan,
    Subject,
    choose_layers,
    choose_windows,
    content_hash,
    make_trial,
    sampler_steps,
)

Choice = TypeVar("Choice")
EXPLORED = 0.25  # share of the later generations that is drawn at random
PARENTS = 4  # one in so many sets may have children
_TRIES = 200


@dataclass(frozen=True, order=True)
class Candidate:
    """A set of heads to intervene on at once, and how; one point of the space."""

    dataset: str
    mode: Mode
    window_index: int
    strength: float
    sites: tuple[Site, ...]

    @property
    def intervention(self) -> Intervention:
        return Intervention(self.mode, self.sites, self.strength)

    def plain(self) -> dict[str, Any]:
        """As values that travel anywhere: Tune's config of a trial, run.json."""
        return {
            "dataset": self.dataset,
            "mode": self.mode.value,
            "window_index": self.window_index,
            "strength": self.strength,
            "sites": [f"{site.layer}:{site.head}" for site in self.sites],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Candidate:
        parts = [site.rpartition(":") for site in plain["sites"]]
        sites = tuple(Site(layer, int(head)) for layer, _, head in parts)
        return cls(plain["dataset"], Mode(plain["mode"]), plain["window_index"], plain["strength"], sites)


@dataclass(frozen=True)
class Space:
    """Everything that may be tried. ``sites`` are the heads that a set is made of."""

    datasets: tuple[str, ...]
    modes: tuple[Mode, ...]
    windows: tuple[Window, ...]
    strengths: tuple[float, ...]
    sites: tuple[Site, ...]
    max_heads: int

    def size(self) -> int:
        sets = sum(math.comb(len(self.sites), k) for k in range(1, self.max_heads + 1))
        return sets * len(self.datasets) * len(self.modes) * len(self.windows) * len(self.strengths)

    def every(self) -> Iterator[Candidate]:
        """All candidates, the smallest sets first."""
        for k in range(1, self.max_heads + 1):
            for sites in combinations(sorted(self.sites), k):
                windows = range(len(self.windows))
                for axes in product(self.datasets, self.modes, windows, self.strengths):
                    yield Candidate(*axes, sites)

    def draw(self, rng: np.random.Generator) -> Candidate:
        """A random candidate; every size of set is equally likely, or there would hardly be a small one."""
        size = int(rng.integers(1, self.max_heads + 1))
        return Candidate(
            _pick(self.datasets, rng),
            _pick(self.modes, rng),
            int(rng.integers(len(self.windows))),
            _pick(self.strengths, rng),
            self._some(self.sites, size, rng),
        )

    def child(self, parent: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
        """One change to ``parent``: a head swapped, added or dropped, heads of ``other`` mixed in, or another axis."""
        moves = ["swap", "add", "drop", "cross", "cross", "axis"]
        move = moves[int(rng.integers(len(moves)))]
        if move == "axis":
            return self._with_axis(parent, rng)
        if move == "cross":
            pool = sorted({*parent.sites, *other.sites})
            size = int(rng.integers(1, min(self.max_heads, len(pool)) + 1))
            return replace(parent, sites=self._some(pool, size, rng))
        outside = [site for site in self.sites if site not in parent.sites]
        kept = list(parent.sites)
        if move in {"swap", "drop"} and len(kept) > (1 if move == "drop" else 0):
            kept.pop(int(rng.integers(len(kept))))
        if move in {"swap", "add"} and outside and len(kept) < self.max_heads:
            kept.append(_pick(outside, rng))
        return replace(parent, sites=tuple(sorted(kept or parent.sites)))

    def _with_axis(self, parent: Candidate, rng: np.random.Generator) -> Candidate:
        drawn = self.draw(rng)
        axis = _pick(("dataset", "mode", "window_index", "strength"), rng)
        return replace(parent, **{axis: getattr(drawn, axis)})

    @staticmethod
    def _some(sites: Sequence[Site], size: int, rng: np.random.Generator) -> tuple[Site, ...]:
        return tuple(sorted(sites[int(i)] for i in rng.choice(len(sites), size, replace=False)))


def _pick(values: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return values[int(rng.integers(len(values)))]


class Evolution:
    """Proposes candidates in generations: the first at random, later ones mostly children of the best quarter so far.

    An evolutionary search, because the space is one of sets: the searchers that model a space (TPE, Gaussian processes)
    need packages that Ray does not bring, and see a set as unrelated switches, while a child shares heads with parents
    that worked.

    It learns from the first rung only. That is the one rung which every candidate reaches, so the scores that it
    compares are of equally many images; and what is proposed depends on the seed and on the numbers measured, never on
    which worker was faster: without Ray, with any number of workers and after a resume the same candidates are tried.
    """

    def __init__(self, space: Space, *, candidates: int, generation: int, seed: int) -> None:
        self._space = space
        self.total = min(candidates, space.size())
        self._generation = generation
        self._seed = seed
        self._generations = 0
        self._scores: dict[Candidate, float | None] = {}
        self._open: set[Candidate] = set()

    @property
    def proposed(self) -> tuple[Candidate, ...]:
        """In the order in which they were proposed."""
        return tuple(self._scores)

    @property
    def waiting(self) -> bool:
        """Whether scores of the last generation are still missing, so that the next one cannot be proposed yet."""
        return bool(self._open)

    def next_generation(self) -> tuple[Candidate, ...]:
        """The next candidates, none of them proposed before; empty when the search is over."""
        assert not self.waiting, "the last generation has no scores yet"
        rng = numpy_generator(self._seed, "search", self._generations)
        ranked = self._ranked()
        first = len(self._scores)
        for _ in range(min(self._generation, self.total - first)):
            self._scores[self._fresh(ranked, rng)] = None
        self._generations += 1
        fresh = self.proposed[first:]
        self._open = set(fresh)
        return fresh

    def tell(self, candidate: Candidate, score: float | None) -> None:
        """The score of the first rung; None for a candidate that cannot be measured. Only the first word counts."""
        if candidate in self._open:
            self._open.remove(candidate)
            self._scores[candidate] = score

    def _ranked(self) -> list[Candidate]:
        scored = [(score, candidate) for candidate, score in self._scores.items() if score is not None]
        return [candidate for _, candidate in sorted(scored, key=lambda pair: -pair[0])]

    def _fresh(self, ranked: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
        parents = ranked[: max(2, len(ranked) // PARENTS)]
        for _ in range(_TRIES):
            if len(parents) < 2 or rng.random() < EXPLORED:
                found = self._space.draw(rng)
            else:
                found = self._space.child(_pick(parents, rng), _pick(parents, rng), rng)
            if found not in self._scores:
                return found
        return next(found for found in self._space.every() if found not in self._scores)


def search_images(config: Config) -> int:
    """Images that the best sets are judged on, and as many again that confirm them."""
    assert config.sweep.images is not None, "checked when the configuration was read"
    return config.sweep.images


def search_space(config: Config, subject: Subject) -> Space:
    """The space that the configuration names.

    Raises:
        ConfigError: a layer, head, window or mode that is not there, or a setting that a search cannot use.
    """
    sweep = config.sweep
    if as_list(sweep.protocols, "sweep.protocols") != ["denoise"]:
        raise ConfigError(f"sweep.protocols: a search measures under [denoise] alone, got {sweep.protocols}")
    if sweep.search.grace_images > search_images(config):
        raise ConfigError(
            f"sweep.search.grace_images: expected at most sweep.images={sweep.images}, got {sweep.search.grace_images}"
        )
    timesteps = sampler_steps(config, subject)
    layers = choose_layers(sweep.layers, subject.layers)
    windows = choose_windows(sweep.windows, timesteps, subject.denoiser.train_timesteps)
    modes = [Mode(m) for m in as_list(sweep.modes, "sweep.modes")]
    check_modes(
        config, modes, layers, windows, timesteps, subject,
        images=sweep.search.grace_images, key="sweep.search.grace_images",
    )  # fmt: skip
    sites = [Site(layer.name, head) for layer in layers for head in as_indices(sweep.heads, layer.heads, "sweep.heads")]
    if sweep.search.max_heads > len(sites):
        raise ConfigError(
            f"sweep.search.max_heads: expected at most {len(sites)}, the heads chosen, got {sweep.search.max_heads}"
        )
    return Space(
        datasets=tuple(subject.data),
        modes=tuple(dict.fromkeys(modes)),
        windows=tuple(windows),
        strengths=tuple(dict.fromkeys(float(s) for s in as_list(sweep.search.strengths, "sweep.search.strengths"))),
        sites=tuple(sites),
        max_heads=sweep.search.max_heads,
    )


def search_plan(config: Config, subject: Subject) -> Plan:
    """The plan of a search before it began: no trials yet, and the identity of all that decides which they will be.

    One probe trial per data set and mode stands for what numbers depend on: weights, images, sampler, metric versions.
    """
    space = search_space(config, subject)
    probes = [
        make_trial(
            config, subject, dataset, "denoise", Intervention(mode, space.sites[:1]), space.windows[0], 0,
            level="set", images=2 * search_images(config),
        ).trial_id
        for dataset in space.datasets for mode in space.modes
    ]  # fmt: skip
    content = {
        "probes": probes, "windows": [(w.t_start, w.t_end) for w in space.windows], "strengths": space.strengths,
        "sites": [(s.layer, s.head) for s in space.sites], "search": vars(config.sweep.search),
        "stats": vars(config.stats),
    }  # fmt: skip
    return Plan((), sampler_steps(config, subject), content_hash(content))
