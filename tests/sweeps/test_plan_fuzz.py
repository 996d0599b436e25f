"""Random grids: a plan can be rebuilt from its file; its ids depend on no order, and none comes twice."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.engine import Window
from circuits.interventions import ABLATIONS, Intervention, Mode, Site
from sweeps.config import Config, ConfigError
from sweeps.leases import LeaseQueue, Pace, Task
from sweeps.plan import Plan, Subject, Trial, make_plan, make_trial
from sweeps.seals import parquet_bytes, parquet_table
from tests.fuzzing import fuzz
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed

LAYERS, HEADS = 3, 3


def several(values: Any, most: int = 3) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(list(values)), min_size=1, max_size=most)


windows = st.lists(
    st.tuples(st.integers(0, 999), st.integers(0, 999)).map(lambda pair: [max(pair), min(pair)]), min_size=1, max_size=3
)
MEASURABLE = [mode.value for mode in ABLATIONS if mode is not Mode.uniform]  # the layers of this model have no keys
GRIDS = st.fixed_dictionaries(
    {
        "layers": several(range(LAYERS)),
        "heads": several(range(HEADS)),
        "levels": several(("head", "layer", "block", "stage")),
        "modes": several(MEASURABLE),
        "windows": st.one_of(st.integers(1, 5), windows),
        "strength": st.floats(0.01, 1),
        "scale": st.floats(0, 9),
        "images": st.integers(20, 64),
        "samples": st.sampled_from([0, 2, 4]),
        "seed": st.integers(0, 2**31),
        "controls": st.integers(0, 2),
    }
)


@pytest.fixture(scope="module")
def config() -> Config:
    return composed("sweep.steps=10")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return fake_subject(LAYERS, HEADS)


def asked(config: Config, grid: dict[str, Any]) -> Config:
    return replace(config, sweep=replace(config.sweep, **grid))


def rebuilt(row: Any, config: Config, subject: Subject) -> Trial:
    """The trial of a row of trials.parquet, from nothing but the row, the seed and the data."""
    sites = tuple(Site(layer, int(head)) for layer, _, head in (site.rpartition(":") for site in row.sites))
    intervention = Intervention(Mode(row.mode), sites, row.strength, row.draw)
    return make_trial(
        config, subject, row.dataset, row.protocol, intervention, Window(row.t_start, row.t_end), row.window_index,
        level=row.level, images=row.images, samples=0 if row.phase == "control" else None, phase=row.phase,
    )  # fmt: skip


def planned(config: Config, subject: Subject) -> Plan | None:
    """None where it is refused, as windows without a sampler step and too few images to resample from are."""
    try:
        return make_plan(config, subject)
    except ConfigError as error:
        if not re.fullmatch(r"sweep\.(windows|images|samples): [^\n]+", str(error)):
            raise
        return None


@fuzz(60)
@given(GRIDS)
def test_a_plan_is_what_its_file_says(config: Config, subject: Subject, grid: dict[str, Any]) -> None:
    wanted = asked(config, grid)
    plan = planned(wanted, subject)
    if plan is None:
        return
    frame = parquet_table(parquet_bytes(pa.Table.from_pandas(plan.frame()))).to_pandas()
    again = [rebuilt(row, wanted, subject) for row in frame.itertuples()]
    assert [trial.trial_id for trial in again] == frame["trial_id"].tolist() == [t.trial_id for t in plan.trials]
    assert [t.row() for t in again] == [t.row() for t in plan.trials]
    assert frame["trial_id"].is_unique


@fuzz(40)
@given(GRIDS, st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_the_order_or_on_asking_twice(
    config: Config, subject: Subject, grid: dict[str, Any], random: Any
) -> None:
    """Nor on what else is planned: a part of the grid has a part of its ids.

    But for the unablated model, which is measured once more beside controls: as the first layer, with nothing replaced.
    """
    lists = [key for key, value in grid.items() if isinstance(value, list)]
    shuffled = grid | {key: random.sample(grid[key] * 2, 2 * len(grid[key])) for key in lists}
    part = grid | {key: grid[key][:1] for key in lists}
    plans = [planned(asked(config, asked_for), subject) for asked_for in (grid, shuffled, part)]
    ids, others, fewer = (
        {trial.trial_id for trial in plan.trials if trial.intervention.strength} if plan else None for plan in plans
    )
    assert ids == others
    if ids is not None:
        assert fewer is not None
        assert fewer <= ids


@fuzz(30)
@given(GRIDS, st.floats(0.01, 50), st.lists(st.floats(0, 3), max_size=30))
def test_leases_hold_every_planned_trial_once(
    config: Config, subject: Subject, grid: dict[str, Any], seconds: float, took: list[float]
) -> None:
    plan = planned(asked(config, grid), subject)
    if plan is None:
        return
    queue, taken, pace = LeaseQueue(map(Task.whole, plan.trials), seconds), list[str](), Pace()
    while queue:
        lease = queue.take(pace)
        taken += [trial.trial_id for trial in lease.trials]
        pace.observe(len(lease.trials), took.pop() if took else 0.1)
    assert sorted(taken) == sorted(trial.trial_id for trial in plan.trials)
