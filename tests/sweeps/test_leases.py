"""How the pending trials are cut into leases: nothing lost, nothing twice, sized by the clock."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.leases import Lease, LeaseQueue, Task, share_key
from sweeps.plan import Plan, make_plan
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed


@pytest.fixture(scope="module")
def plan() -> Plan:
    """2 data sets x 2 windows x 3 layers of 5 trials."""
    return make_plan(composed("sweep.windows=2", "sweep.modes=[zero]"), fake_subject(layers=3, heads=4))


def drained(queue: LeaseQueue) -> list[Lease]:
    leases = []
    while queue:
        leases.append(queue.take())
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
    for _ in range(100):
        queue.observe(1, seconds_per_trial)
    assert len(queue.take().trials) == size


def test_nothing_is_learned_from_a_lease_in_which_every_trial_was_lost(plan: Plan) -> None:
    queue = LeaseQueue(map(Task.whole, plan.trials), 1.0)
    queue.observe(0, 5.0)
    assert len(queue.take().trials) == 4


def test_a_lease_given_back_goes_first_and_whole(plan: Plan) -> None:
    queue = LeaseQueue(map(Task.whole, plan.trials), 1.0)
    first, second = queue.take(), queue.take()
    queue.give_back(first)
    assert queue.take() is first
    assert queue.take() != second


def test_halves(plan: Plan) -> None:
    lease = Lease.of(plan.trials[:5])
    left, right = lease.halves()
    assert (*left.trials, *right.trials) == lease.trials
    assert (len(left.trials), len(right.trials)) == (2, 3)
    alone = Lease.of(plan.trials[:1])
    assert alone.halves() == [alone]


def test_an_empty_queue_is_false() -> None:
    assert not LeaseQueue((), 1.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=60), st.floats(0.01, 100))
def test_whatever_happens_every_trial_is_handed_out_once(
    plan: Plan, events: list[tuple[float, bool]], seconds: float
) -> None:
    queue, done = LeaseQueue(map(Task.whole, plan.trials), seconds), Counter[str]()
    events = list(events)
    while queue:
        lease = queue.take()
        took, lost = events.pop() if events else (0.1, False)
        if lost:
            queue.give_back(lease)
        else:
            queue.observe(len(lease.trials), took)
            done.update(t.trial_id for t in lease.trials)
    assert done == Counter(t.trial_id for t in plan.trials)
