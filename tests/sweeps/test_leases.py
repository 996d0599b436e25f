"""How the pending trials are cut into leases: nothing lost, nothing twice, sized by the clock."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.leases import Lease, LeaseQueue, Pace, Task, fair_shares, share_key
from sweeps.plan import Plan, make_plan
from tests.fuzzing import fuzz
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed


@pytest.fixture(scope="module")
def plan() -> Plan:
    """2 data sets x 2 windows x 3 layers of 5 trials."""
    return make_plan(composed("sweep.windows=2", "sweep.modes=[zero]"), fake_subject(layers=3, heads=4))


def pace_of(seconds: float) -> Pace:
    """Of a worker that takes so long a trial, always."""
    pace = Pace()
    pace.observe(1, seconds)
    return pace


def drained(queue: LeaseQueue) -> list[Lease]:
    leases = []
    while queue:
        leases.append(queue.take(pace_of(0.25)))
    return leases


def test_a_lease_shares_model_data_window_and_layer_and_is_named_after_its_trials(plan: Plan) -> None:
    leases = drained(LeaseQueue(map(Task.whole, plan.trials), 1.0))
    assert [t for lease in leases for t in lease.trials] == list(plan.trials)
    assert all(len({share_key(t) for t in lease.trials}) == 1 for lease in leases)
    assert len({lease.lease_id for lease in leases}) == len(leases)
    assert Lease.of(leases[0].trials) == leases[0]


@pytest.mark.parametrize(("seconds_per_trial", "size"), [(10.0, 1), (1.0, 1), (0.5, 2), (0.25, 4), (1e-9, 5)])
def test_leases_grow_to_the_seconds_asked_for(plan: Plan, seconds_per_trial: float, size: int) -> None:
    queue = LeaseQueue(map(Task.whole, plan.trials), 1.0)
    assert len(queue.take(pace_of(seconds_per_trial)).trials) == size


def test_a_worker_of_which_nothing_is_known_begins_with_one_trial(plan: Plan) -> None:
    """It may be the slowest: a lease in which every trial was lost teaches nothing."""
    pace = Pace()
    pace.observe(0, 5.0)
    assert pace.seconds is None
    assert len(LeaseQueue(map(Task.whole, plan.trials), 1e6).take(pace).trials) == 1


def test_a_pace_is_what_was_found_first_and_then_goes_half_way_in_ratios() -> None:
    pace = Pace()
    pace.observe(4, 1.0)
    assert pace.seconds == 0.25
    pace.observe(1, 4.0)
    assert pace.seconds == 1.0
    for _ in range(6):  # it measured its best number of rows first, say
        pace.observe(100, 1.0)
    assert pace.seconds == pytest.approx(0.01 * 100 ** (1 / 64))


def test_a_lease_given_back_goes_first_and_whole(plan: Plan) -> None:
    queue = LeaseQueue(map(Task.whole, plan.trials), 1.0)
    pace = pace_of(0.25)
    first, second = queue.take(pace), queue.take(pace)
    queue.give_back(first)
    assert queue.take(pace) is first
    assert queue.take(pace) != second


def test_a_lease_given_back_by_a_faster_worker_is_cut(plan: Plan) -> None:
    queue = LeaseQueue(map(Task.whole, plan.trials), 1.0)
    large = queue.take(pace_of(0.2))
    queue.give_back(large)
    assert queue.take(pace_of(0.33)) is large, "five trials for a worker that would take three: near enough"
    queue.give_back(large)
    before = queue.waiting
    one = queue.take(pace_of(0.7))
    assert (one.trials, one.units) == (large.trials[:1], large.units)
    assert queue.waiting == before - 1
    rest = queue.take(pace_of(0.2))
    assert rest.trials == large.trials[1:]
    assert len({one.lease_id, rest.lease_id, large.lease_id}) == 3


def test_halves(plan: Plan) -> None:
    lease = Lease.of(plan.trials[:5])
    left, right = lease.halves()
    assert (*left.trials, *right.trials) == lease.trials
    assert (len(left.trials), len(right.trials)) == (2, 3)
    alone = Lease.of(plan.trials[:1])
    assert alone.halves() == [alone]


def test_an_empty_queue_is_false() -> None:
    assert not LeaseQueue((), 1.0)


@fuzz(50)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.sampled_from([None, 1, 5, 40])), max_size=60),
    st.floats(0.01, 100),
)
def test_whatever_happens_every_trial_is_handed_out_once(
    plan: Plan, events: list[tuple[float, bool, int | None]], seconds: float
) -> None:
    """By workers that take turns, of which one is slow."""
    queue, done = LeaseQueue(map(Task.whole, plan.trials), seconds), Counter[str]()
    events, paces = list(events), itertools.cycle([Pace(), pace_of(20.0)])
    while queue:
        took, lost, share = events.pop() if events else (0.1, False, None)
        pace = next(paces)
        lease = queue.take(pace, share)
        if lost:
            queue.give_back(lease)
        else:
            pace.observe(len(lease.trials), took)
            done.update(t.trial_id for t in lease.trials)
    assert done == Counter(t.trial_id for t in plan.trials)


# Who should run what is left


@pytest.mark.parametrize(
    ("tasks", "paces", "busy", "shares"),
    [
        (12, [1, 1, 1], [0, 0, 0], [4, 4, 4]),
        (8, [1, 1 / 3], [0, 0], [2, 6]),
        (5, [1, 1], [3, 0], [1, 4]),
        (10, [100, 1], [0, 0], [0, 10]),
        (10, [5, 1], [0, 20], [5, 5]),
        (1, [2, 2, 3], [0, 0, 0], [1, 1, 0]),
        (1, [2], [1000], [1]),
    ],
    ids=["alike", "by speed", "by what they have", "not the slow one", "the fast one is busy", "either", "nobody else"],
)
def test_shares_by_hand(tasks: int, paces: list[float], busy: list[float], shares: list[int]) -> None:
    assert fair_shares(tasks, paces, busy) == shares


@fuzz(200)
@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 20)), min_size=1, max_size=7),
)
def test_shares_are_those_of_giving_one_task_after_the_other(tasks: int, workers: list[tuple[float, float]]) -> None:
    """To whoever has it done first. At a tie several may be right, so times are compared and not shares."""
    paces, busy = [pace for pace, _ in workers], [free for _, free in workers]
    ends = list(busy)
    for _ in range(tasks):
        chosen = min(range(len(workers)), key=lambda w: ends[w] + paces[w])
        ends[chosen] += paces[chosen]
    last = max(end for end, free in zip(ends, busy, strict=True) if end > free)
    shares = fair_shares(tasks, paces, busy)
    assert sum(shares) >= tasks
    given = [free + share * pace for share, pace, free in zip(shares, paces, busy, strict=True) if share]
    assert max(given) == pytest.approx(last, rel=1e-4)
    surely = sum(share - 1 if end > last * (1 - 1e-4) else share for share, end in zip(
        (share for share in shares if share), given, strict=True
    ))  # fmt: skip
    assert surely < tasks, "nobody has more than it takes"
