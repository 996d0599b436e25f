"""What a sweep says of itself while it runs: lines without a terminal, a bar and a top ten on one, progress.json."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from rich.console import Console

from sweeps.outlook import SURVIVAL, Looks, expected_images
from sweeps.plan import Trial
from sweeps.progress import LINE_SECONDS, QUIET_SECONDS, SweepProgress
from sweeps.records import Failure, RunDirectory
from sweeps.standing import GAVE_OUT, INTERRUPTED, MEASURING, TRACKING, Bulletin, Standing, Strong, read_standing

LINE = re.compile(
    r"^progress (\d+)% (\d+)/(\d+) trials, (\d+) failed, [\d.]+ trials/s, \d+ rows/s, ETA (-|[\d:]+)"
    r"(; strongest so far [-+]\d+% .+)?$"
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def trials(count: int, heads: int | None = None, phase: str = "grid") -> dict[str, Trial]:
    made = {
        f"t{i}": SimpleNamespace(
            trial_id=f"t{i}", head=i if heads is None or i < heads else -1, phase=phase, label=f"head {i}, zero"
        )
        for i in range(count)
    }
    return cast("dict[str, Trial]", made)


def log() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=60)


def logged(console: Console) -> list[str]:
    return cast(io.StringIO, console.file).getvalue().splitlines()


def one(value: float, images: int = 4) -> np.ndarray:
    return np.full(images, value, dtype=np.float32)


def test_a_line_every_five_percent(clock: Clock) -> None:
    console = log()
    with SweepProgress(trials(200), 0, console, clock=clock) as progress:
        for index in range(200):
            clock.now += 1.0
            progress.add({f"t{index}": one(index / 1000)}, index + 1, 0, 8)
    lines = [found for line in logged(console) if (found := LINE.match(line))]
    assert len(lines) == len(logged(console)), "nothing else is printed, and every line can be grepped"
    assert [int(found[1]) for found in lines] == list(range(5, 101, 5))
    assert logged(console)[9] == (
        "progress 50% 100/200 trials, 0 failed, 1.0 trials/s, 8 rows/s, ETA 1:40; strongest so far +10% head 99, zero"
    )


def test_a_slow_sweep_says_that_it_lives_and_a_quick_one_says_little(clock: Clock) -> None:
    console = log()
    with SweepProgress(trials(100_000), 0, console, clock=clock) as progress:
        for index in range(600):
            clock.now += 1.0
            progress.add({f"t{index}": one(0.1)}, index + 1, 0, 8)
    assert len(logged(console)) == 600 / LINE_SECONDS
    console = log()
    with SweepProgress(trials(1000), 0, console, clock=clock) as progress:
        for index in range(1000):
            clock.now += 0.02
            progress.add({f"t{index}": one(0.1)}, index + 1, 0, 8)
    assert 1 <= len(logged(console)) <= 20 / QUIET_SECONDS


def test_the_time_left_is_by_rows_and_by_the_rate_of_late(clock: Clock) -> None:
    """Workers take a minute to start; then 10 rows a second, and later rounds have few trials but many rows."""
    left = 3000.0
    progress = SweepProgress(trials(100), 0, log(), left=lambda: left, clock=clock)
    assert progress.eta() == float("inf")
    clock.now += 60.0
    progress.add({}, 0, 0, 0)
    for _ in range(40):
        clock.now += 5.0
        left -= 50
        progress.add({}, 50, 0, 50)
    assert progress.eta() == pytest.approx(left / 10)


def test_the_time_left_without_rows_is_by_trials(clock: Clock) -> None:
    progress = SweepProgress(trials(100), 20, log(), clock=clock)
    clock.now += 10.0
    progress.add({}, 40, 0, 8)
    assert progress.eta() == pytest.approx(30.0), "20 trials in 10 s, 60 left"


def test_the_top_ten_is_of_heads_by_their_images_so_far(clock: Clock) -> None:
    progress = SweepProgress(trials(20, heads=15), 0, log(), known={"t0": (4 * 0.5, 4)}, clock=clock)
    progress.add({f"t{i}": one(i / 100) for i in range(20)}, 0, 0, 0)
    top = progress.top()
    assert len(top) == 10
    assert top[0] == Strong("head 0, zero", pytest.approx(100 * np.expm1(0.25)), 8), "what was recorded before counts"
    assert [strong.label for strong in top[1:]] == [f"head {i}, zero" for i in range(14, 5, -1)]
    assert SweepProgress(trials(3, phase="control"), 0, log(), known={"t0": (1, 1)}).top() == ()
    layers = SweepProgress(trials(3, heads=0), 0, log(), known={"t1": (1, 1)}).top()
    assert [strong.label for strong in layers] == ["head 1, zero"]


def test_a_terminal_shows_bar_top_memory_and_causes(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with SweepProgress(trials(4), 0, console, clock=clock) as progress:
        clock.now += 10
        progress.note([Failure("t1", "ArithmeticError: [b]no", "", 2)], 3 * 2**30)
        progress.add({"t0": one(0.1)}, 1, 1, 40)
        shown = Console(file=io.StringIO(), width=160)
        shown.print(progress._live.renderable)
    text = cast(io.StringIO, shown.file).getvalue()
    for expected in ("2/4", "0.2 trials/s, 4 rows/s", "ETA 0:10", "+10.5%", "n=4", "head 0, zero", "1 failed",
                     "ArithmeticError: [b]no", "3.0 GiB"):  # fmt: skip
        assert expected in text


# progress.json


def test_the_bulletin_says_where_the_sweep_stands(clock: Clock, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    bulletin = Bulletin(directory, every=2.0, clock=clock)
    with SweepProgress(trials(4), 1, log(), bulletin=bulletin, clock=clock) as progress:
        assert read_standing(directory) == Standing(MEASURING, trials=4, done=1)
        clock.now += 1.0
        progress.add({"t1": one(0.1)}, 2, 0, 8)
        assert read_standing(directory) == Standing(MEASURING, trials=4, done=1), "not before two seconds are over"
        clock.now += 1.0
        progress.note([Failure("t2", "boom", "", 2)], 0)
        progress.add({}, 2, 1, 8)
        found = read_standing(directory)
        assert found is not None
        assert (found.done, found.failed, found.rows, found.seconds) == (2, 1, 16, 2.0)
        assert (found.trials_per_second, found.rows_per_second, found.eta) == (1.0, 8.0, 1.0)
        assert found.causes == (("boom", 1),)
        assert [(strong.label, strong.images) for strong in found.top] == [("head 1, zero", 4)]
        progress.settle(3)
    bulletin.enter(TRACKING)
    clock.now += 7.0
    bulletin.enter("finished")
    found = read_standing(directory)
    assert found is not None
    assert (found.state, found.done, found.tracking_seconds) == ("finished", 3, 7.0)


def _ended_by(error: type[BaseException], bulletin: Bulletin) -> None:
    bulletin.enter(MEASURING)
    raise error


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, INTERRUPTED), (OSError, GAVE_OUT)])
def test_what_ends_a_run_is_noted(error: type[BaseException], state: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    bulletin = Bulletin(directory)
    with pytest.raises(error), bulletin:
        _ended_by(error, bulletin)
    found = read_standing(directory)
    assert found is not None
    assert found.state == state
    with pytest.raises(error), Bulletin(RunDirectory(directory.path / "absent")):
        raise error  # nothing was done yet, nothing is written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"state": "measuring", "top": [3]}',
        '{"state": "measuring", "trials": "x"}',
        '{"done": 1}',
        "\x00",
    ],
)
def test_a_damaged_bulletin_is_none(text: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.progress.write_text(text)
    assert read_standing(directory) is None


# What is to come


def test_expected_images_equal_a_simulation() -> None:
    rng = np.random.default_rng(0)
    for left, batch, survival in ((48, 16, 0.5), (50, 16, 0.7), (7, 16, 0.3), (0, 16, 0.5)):
        total = 0
        for _ in range(20_000):
            remaining = left
            while remaining and rng.random() < survival:
                total += min(batch, remaining)
                remaining -= min(batch, remaining)
        assert expected_images(np.array([left]), batch, survival)[0] == pytest.approx(total / 20_000, abs=0.4)
    assert expected_images(np.array([50]), 16, 1.0)[0] == 50


def test_survival_is_learned() -> None:
    assert Looks().survival == SURVIVAL
    assert Looks().and_then(10_000, 2_000).survival == pytest.approx(0.2, abs=1e-3)
