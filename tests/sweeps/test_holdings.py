"""Where workers go: nobody computes a clean pass, means or a trajectory that somebody else has, without need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.engine import Window
from sweeps.holdings import Holdings, Place, next_place
from sweeps.leases import LeaseQueue, Pace, Task, share_key
from sweeps.plan import Plan, make_plan
from tests.fuzzing import fuzz
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed

EARLY, LATE = Window(999, 500), Window(499, 0)
HERE = Place("model", "faces", "denoise", EARLY, (0, 64, 4), (0, 16), 4)
NEXT_ROUND = HERE._replace(units=(16, 32), seeds=0)
LATER = HERE._replace(window=LATE)
ELSEWHERE = HERE._replace(dataset="cats")
DRAWN = HERE._replace(protocol="sample", images=(0, 4, 4), window=LATE)


def holding(*places: Place) -> Holdings:
    held = Holdings()
    for place in places:
        held.enter(place)
    return held


# What a place needs


@pytest.mark.parametrize(
    ("place", "lacking"),
    [
        (HERE, 0),
        (NEXT_ROUND, 0),
        (LATER, 1),
        (NEXT_ROUND._replace(window=LATE), 1),
        (ELSEWHERE, 2),
        (ELSEWHERE._replace(seeds=0), 1),
        (HERE._replace(images=(64, 64, 4)), 1),
        (DRAWN, 1),
        (DRAWN._replace(window=EARLY), 0),
    ],
    ids=[
        "itself", "next round", "other means", "other means, no images drawn", "all", "other means of other data",
        "other seeds", "drawn in the other window", "all seeds are drawn already",
    ],
)  # fmt: skip
def test_what_a_worker_lacks_by_hand(place: Place, lacking: int) -> None:
    """Means of each window of a data set, and a trajectory of its seeds: in ``denoise`` with the first units only."""
    assert holding(HERE).lacking(place) == lacking
    assert holding(HERE, place).lacking(place) == 0
    assert Holdings().lacking(place) == len(place.shared) == (2 if place.seeds else 1)


def test_a_place_is_what_its_leases_share() -> None:
    plan = make_plan(composed("sweep.protocols=[denoise,sample]", "sweep.windows=2"), fake_subject())
    trial = next(t for t in plan.trials if t.protocol == "denoise")
    assert trial.samples == 4
    first, second = Place.of(trial, range(16)), Place.of(trial, range(16, 32))
    assert (first.seeds, second.seeds) == (4, 0), "samples are generated with the first units"
    assert first.units == (0, 16)
    drawn = next(t for t in plan.trials if t.protocol == "sample")
    assert Place.of(drawn, range(drawn.images)).seeds == drawn.images
    for changed in (
        replace(trial, dataset="other"),
        replace(trial, window=Window(3, 2)),
        replace(trial, protocol="sample"),
        replace(trial, first_image=1),
        replace(trial, images=65),
        replace(trial, samples=3),
        replace(trial, model="other"),
    ):
        assert Place.of(changed, range(16)) != first
    assert Place.of(replace(trial, layer_index=9, head=3), range(16)) == first


# Where a worker goes


@pytest.mark.parametrize(
    ("held", "waiting", "there", "workers", "chosen"),
    [
        (holding(HERE), {LATER: 9, HERE: 1}, {HERE: 5}, 2, HERE),
        (Holdings(), {LATER: 9, HERE: 1}, {}, 2, LATER),
        (holding(ELSEWHERE), {LATER: 9, HERE: 9}, {LATER: 1}, 2, HERE),
        (holding(HERE), {ELSEWHERE: 9, NEXT_ROUND: 9}, {}, 2, NEXT_ROUND),
        (holding(HERE), {ELSEWHERE: 9, NEXT_ROUND: 9}, {NEXT_ROUND: 1}, 4, NEXT_ROUND),
        (holding(HERE), {ELSEWHERE: 9, NEXT_ROUND: 9}, {NEXT_ROUND: 2}, 4, ELSEWHERE),
        (holding(HERE), {ELSEWHERE: 9, NEXT_ROUND: 1}, {NEXT_ROUND: 1}, 4, ELSEWHERE),
        (holding(HERE), {ELSEWHERE: 9, LATER: 9}, {}, 2, LATER),
        (holding(ELSEWHERE), {HERE: 4, LATER: 8}, {HERE: 1, LATER: 1}, 4, LATER),
    ],
    ids=[
        "stays, though it is crowded", "the first of the plan", "where nobody is", "where it has the means",
        "where it has the means, though somebody is there", "not where enough are", "not where enough are for the work",
        "where it has the trajectory", "fewest workers for the work",
    ],
)  # fmt: skip
def test_where_a_worker_goes_by_hand(
    held: Holdings, waiting: Mapping[Place, int], there: Mapping[Place, int], workers: int, chosen: Place
) -> None:
    assert next_place(waiting, held, there, workers) == chosen


PLACES = [HERE, NEXT_ROUND, LATER, ELSEWHERE, DRAWN]


@fuzz(200)
@given(
    st.dictionaries(st.sampled_from(PLACES), st.integers(1, 9), min_size=1),
    st.lists(st.sampled_from(PLACES), max_size=9),
    st.lists(st.sampled_from(PLACES), max_size=3),
)
def test_there_always_is_a_place_and_none_is_crowded(
    waiting: dict[Place, int], others: list[Place], been: list[Place]
) -> None:
    held, there, workers = holding(*been), Counter(others), len(others) + 1
    chosen = next_place(waiting, held, there, workers)
    assert chosen in waiting
    if chosen != held.place:
        assert there[chosen] < workers * waiting[chosen] / sum(waiting.values())


# What that saves


@pytest.fixture(scope="module")
def plan() -> Plan:
    """2 data sets x 5 windows x 4 layers of 25 trials."""
    return make_plan(composed("sweep.modes=[zero,mean,resample]", "sweep.levels=[head]"), fake_subject(4, 9))


def in_turn(waiting: Mapping[Place, int], held: Holdings, there: Mapping[Place, int], workers: int) -> Place:
    """The order of the plan."""
    return next(iter(waiting))


def rounds_of(plan: Plan, count: int) -> Iterator[list[Task]]:
    for index in range(count):
        yield [Task(trial, range(16 * index, 16 * index + 16)) for trial in plan.trials]


def computed(plan: Plan, workers: int, rounds: int, choose: Callable[..., Place]) -> tuple[int, int]:
    """Clean passes, and means or trajectories, that workers of one speed compute; a lease has three trials."""
    left = rounds_of(plan, rounds)
    queue, pace = LeaseQueue(next(left), 3.0, lambda: next(left, [])), Pace()
    pace.observe(1, 1.0)
    held, passes, shared = [Holdings() for _ in range(workers)], 0, 0
    rng = np.random.default_rng(0)
    while queue or queue.refill():
        for index in rng.permutation(workers).tolist():
            if not queue:
                break
            mine, there = held[index], Counter(h.place for h in held if h.place)
            lease = queue.take(pace, None, lambda waiting: choose(waiting, mine, there, workers))  # noqa: B023
            passes += lease.place != mine.place
            shared += mine.lacking(lease.place)
            mine.enter(lease.place)
    return passes, shared


@pytest.mark.parametrize("workers", [1, 2, 5, 10, 40])
def test_workers_share_places_out(plan: Plan, workers: int) -> None:
    """In three rounds of ten places: as few clean passes as there can be, and no means twice without need."""
    places = len({share_key(trial)[0] for trial in plan.trials})
    assert places == 2 * 5
    passes, shared = computed(plan, workers, 3, next_place)
    most = max(places, workers)
    assert passes == 3 * most
    assert shared <= most + min(2 * workers, most), "means, and trajectories of two data sets"
    passes_in_turn, shared_in_turn = computed(plan, workers, 3, in_turn)
    everybody = min(workers, 30)  # a place has 36 leases
    assert passes_in_turn >= 3 * places * everybody, "the control: everybody everywhere"
    assert shared_in_turn >= (places + 2) * everybody
