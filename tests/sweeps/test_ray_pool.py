"""The pool of Ray actors when things go wrong, with workers that load no model: nothing lost, nobody blamed wrongly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest

from sweeps.config import ClusterConfig
from sweeps.leases import LeaseQueue, Pace
from sweeps.records import Failure, GaveOut
from sweeps.schedule import clusters
from sweeps.schedule.pool import Pool
from tests.sweeps.tiny import environment

if TYPE_CHECKING:
    from sweeps.holdings import Place

pytestmark = pytest.mark.run

LOCAL = ClusterConfig(name="local", workers=2)


@dataclass(frozen=True)
class LightTrial:
    trial_id: str


@dataclass(frozen=True)
class LightLease:
    """A lease that a worker can unpickle without importing torch."""

    lease_id: str
    trials: tuple[LightTrial, ...]

    @classmethod
    def of(cls, *trial_ids: str) -> LightLease:
        return cls("+".join(trial_ids), tuple(map(LightTrial, trial_ids)))

    @property
    def place(self) -> Place:
        from circuits.engine import Window
        from sweeps.holdings import Place

        return Place("", "", "denoise", Window(999, 0), (0, 1, 0), (0, 1), 0)

    def halves(self) -> list[LightLease]:
        ids = [t.trial_id for t in self.trials]
        return [LightLease.of(*ids[: len(ids) // 2]), LightLease.of(*ids[len(ids) // 2 :])]


@dataclass
class LightQueue:
    waiting_leases: deque[LightLease]

    @classmethod
    def of(cls, *leases: tuple[str, ...]) -> LightQueue:
        return cls(deque(LightLease.of(*lease) for lease in leases))

    def __bool__(self) -> bool:
        return bool(self.waiting_leases)

    def refill(self) -> bool:
        return False

    @property
    def waiting(self) -> int:
        return len(self.waiting_leases)

    def take(self, pace: Pace, share: int, choose: object) -> LightLease:
        return self.waiting_leases.popleft()

    def give_back(self, lease: LightLease) -> None:
        self.waiting_leases.appendleft(lease)


class LightWorker:
    """Notes what it does in a folder; a trial's id says what befalls it."""

    def __init__(self, folder: str) -> None:
        from sweeps.drain import Drain

        self.folder = folder
        self.drain = Drain()
        if os.path.exists(f"{folder}/refuse"):
            raise OSError("the model\nis gone")

    def ping(self) -> int:
        return os.getpid()

    def run(self, lease: LightLease) -> SimpleNamespace:
        self.drain.admit()
        outcome = self.measure(lease)
        outcome.last = self.drain.told
        return outcome

    def measure(self, lease: LightLease) -> SimpleNamespace:
        with open(f"{self.folder}/pids", "a") as log:
            print(os.getpid(), file=log)
        for trial in lease.trials:
            what = trial.trial_id.partition("-")[0]
            first_time = not os.path.exists(f"{self.folder}/{trial.trial_id}")
            with open(f"{self.folder}/{trial.trial_id}", "a") as log:
                print("tried", file=log)
            if what == "die" or (what == "dieonce" and first_time):
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "hang":
                time.sleep(1000)
            if what == "slow":
                time.sleep(0.3)
            if what == "outlast":
                until(lambda: any(_process(pid) is None for pid in pids(Path(self.folder))))
            if what == "meet":
                until(lambda: len(pids(Path(self.folder))) > 1)
            if what == "preempted" and first_time:
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: self.drain.told)
            if what == "disk":
                from sweeps.records import GaveOut

                raise GaveOut("x.parquet could not be written (No space left on device)")
            if what == "device" and first_time:
                raise FloatingPointError("the device is lost")
            if what == "bug":
                raise LookupError("a bug")
        gains = {t.trial_id: 1.0 for t in lease.trials}
        return SimpleNamespace(gains=gains, failures=(), rows=1, seconds=0.01, peak_memory=0)


@dataclass
class Ended:
    """What came of a pool: trials done (with how often), and failures."""

    done: Counter[str]
    failures: list[Failure]


Run = Callable[..., Ended]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    clusters.connect(LOCAL)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    clusters.disconnect()


@dataclass
class LightFactory:
    folder: str
    workers: int
    started: list[Any] = field(default_factory=list)

    def wanted(self) -> dict[str, int]:
        return {"light": self.workers}

    def start(self, kind: str) -> Any:
        import ray

        actor = ray.remote(LightWorker).options(num_cpus=0.5, max_restarts=-1, max_task_retries=0)
        self.started.append(actor.remote(self.folder))
        return self.started[-1]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    import ray

    factories: list[LightFactory] = []

    def ended(
        *leases: tuple[str, ...],
        workers: int = 1,
        timeout: float = 1000,
        idle: float = float("inf"),
        at_each: Callable[[threading.Event], object] = lambda _: None,
    ) -> Ended:
        factories.append(LightFactory(str(tmp_path), workers))
        stop, found = threading.Event(), Ended(Counter(), [])
        queue = LightQueue.of(*leases)
        pool = Pool(cast(LeaseQueue, queue), factories[-1], timeout, stop, idle)
        for _, outcome in pool.outcomes():
            found.done.update(outcome.gains)
            found.failures.extend(outcome.failures)
            at_each(stop)
        if not stop.is_set():
            assert not queue
        return found

    ended.factories = factories  # type: ignore[attr-defined]
    yield ended
    for factory in factories:
        for handle in factory.started:
            ray.kill(handle)


def tries(folder: Path, trial: str) -> int:
    return (folder / trial).read_text().count("tried")


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pids(folder: Path) -> set[int]:
    return set(ordered_pids(folder))


def ordered_pids(folder: Path) -> list[int]:
    """Of the workers, in the order in which they first ran a lease."""
    return list(dict.fromkeys(int(pid) for pid in (folder / "pids").read_text().split()))


def _process(pid: int) -> psutil.Process | None:
    """None where it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    return None


def _listens_at(process: psutil.Process) -> set[str]:
    """Nowhere where it has ended."""
    with suppress(psutil.Error):
        found = process.net_connections(kind="inet")
        return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}
    return set()


# Where Ray listens


def test_ray_listens_on_the_loopback_only_and_its_secret_is_in_no_file() -> None:
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    assert len(family) > 3, "the processes of Ray are our children"
    listening = set[str]().union(*map(_listens_at, family))
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    stored = Path.home() / ".ray" / "auth_token"
    assert not stored.exists() or token not in stored.read_text()


def test_signals_are_the_drivers_own_after_ray_has_started() -> None:
    """Ray's handler would abort the process at SIGTERM; here it is as it was before, in Python and for the kernel."""
    code = (
        "import os, signal, sys\nfrom sweeps.schedule import clusters\nfrom sweeps.config import ClusterConfig\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('drains', flush=True))\n"
        "clusters.connect(ClusterConfig(name='local', workers=1))\nos.kill(os.getpid(), signal.SIGTERM)\n"
        "clusters.disconnect()"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "drains\n"), ended.stderr


# Work


def test_every_lease_is_run_once_by_all_workers(run: Run, tmp_path: Path) -> None:
    leases = [(f"{'slow' if i else 'meet'}-{i}", f"ok-{i}") for i in range(8)]
    ended = run(*leases, workers=2)
    assert ended.done == Counter(t for lease in leases for t in lease)
    assert ended.failures == []
    assert all(tries(tmp_path, t) == 1 for lease in leases for t in lease)
    assert len(pids(tmp_path)) == 2, "the first lease waits for a second worker"


def test_stopping_drains_what_is_in_flight(run: Run, tmp_path: Path) -> None:
    ended = run(*[(f"slow-{i}",) for i in range(10)], at_each=threading.Event.set)
    assert set(ended.done) == {"slow-0", "slow-1"}, "the lease that came back, and the one in flight behind it"
    assert not (tmp_path / "slow-2").exists()


# Faults


def test_a_worker_that_dies_once_costs_nothing(run: Run, tmp_path: Path) -> None:
    ended = run(("ok-0", "dieonce-1", "ok-2"), ("ok-3",), ("ok-4",))
    assert ended.done == Counter(["ok-0", "dieonce-1", "ok-2", "ok-3", "ok-4"])
    assert ended.failures == []
    assert tries(tmp_path, "dieonce-1") == 2
    assert len(pids(tmp_path)) == 2


def test_a_poison_trial_is_found_by_halving_and_the_rest_is_complete(run: Run, tmp_path: Path) -> None:
    """With one worker, which dies again and again without a success in between."""
    trials = [f"ok-{i}" for i in range(8)]
    trials[5] = "die-5"
    ended = run(tuple(trials), ("ok-x",))
    assert set(ended.done) == {*trials, "ok-x"} - {"die-5"}
    (failure,) = ended.failures
    assert failure.trial_id == "die-5"
    assert failure.error.startswith("its worker died 3 times: ")
    assert failure.attempts == 3
    # Whole twice, in parts of 4 and 2 once each, alone twice; once more if it was handed to a process that had died
    # before, and run by the next one.
    assert tries(tmp_path, "die-5") in (6, 7)


def test_leases_that_wait_behind_a_poison_trial_are_not_blamed(run: Run) -> None:
    """Each waits alone in a lease behind it, as often as it takes to call it failed."""
    ended = run(("die-0",), ("ok-1",), ("ok-2",))
    assert ended.done == Counter(["ok-1", "ok-2"])
    assert [f.trial_id for f in ended.failures] == ["die-0"]


def test_a_worker_killed_from_outside_loses_nothing(run: Run, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(_: threading.Event) -> None:
        alive = pids(tmp_path) - set(killed)  # none where this is the answer of the last one that was killed
        if len(killed) < 3 and alive:
            killed.append(alive.pop())
            os.kill(killed[-1], signal.SIGKILL)

    ended = run(*[(f"slow-{i}", f"ok-{i}") for i in range(10)], workers=2, at_each=kill_one)
    assert set(ended.done) == {f"{what}-{i}" for what in ("slow", "ok") for i in range(10)}
    assert ended.failures == []
    assert len(killed) == 3


def test_a_worker_whose_machine_is_about_to_go_finishes_what_it_is_at(run: Run, tmp_path: Path) -> None:
    """SIGTERM: the lease it is at counts, those handed to it go elsewhere, and the process ends."""
    ended = run(("preempted-0", "ok-0"), ("ok-1",), ("ok-2",))
    assert ended.done == Counter(["preempted-0", "ok-0", "ok-1", "ok-2"])
    assert ended.failures == []
    assert tries(tmp_path, "preempted-0") == tries(tmp_path, "ok-1") == 1
    first, second = ordered_pids(tmp_path)
    assert first != second
    until(lambda: _process(first) is None)


def test_workers_come_when_there_is_room_and_go_when_there_is_no_work(run: Run, tmp_path: Path) -> None:
    """A cluster that grows: a second worker has work as soon as it is up. One that rests gives its place back."""
    alive: list[int] = []

    def watch(_: threading.Event) -> None:
        run.factories[-1].workers = 2  # type: ignore[attr-defined]
        if len(pids(tmp_path)) == 2 and not alive:
            alive.extend(pids(tmp_path))

    trials = ["slow-0", "meet-0", *(f"slow-{i}" for i in range(1, 6)), "outlast-0"]
    ended = run(*[(trial,) for trial in trials], at_each=watch, idle=0.5)
    assert ended.done == Counter(trials), "while one was at the last lease, the other went"
    assert len(alive) == 2, "the second one worked too"


def test_a_lease_that_hangs_is_ended(run: Run, tmp_path: Path) -> None:
    ended = run(("hang-0",), ("ok-1",), timeout=2)
    assert ended.done == Counter(["ok-1"])
    (failure,) = ended.failures
    assert failure.trial_id == "hang-0"
    assert failure.error == "its worker died 3 times: a lease took longer than cluster.lease_timeout (2 s)"
    assert 0 < tries(tmp_path, "hang-0") <= 3, "a machine that is busy enough may not begin one in that time"


def test_a_lost_device_restarts_the_worker(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.schedule.pool.DEVICE_LOST", (FloatingPointError,))
    ended = run(("ok-0", "device-1"), ("ok-2",))
    assert ended.done == Counter(["ok-0", "device-1", "ok-2"])
    assert ended.failures == []
    assert len(pids(tmp_path)) == 2


def test_a_worker_that_is_told_to_end_is_handed_nothing_before_it_has(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that lost its device still answers for a while, and the next lease would die with it."""
    import ray

    kill = ray.kill

    def late(handle: Any, *, no_restart: bool = True) -> None:
        threading.Timer(1.5, kill, (handle,), {"no_restart": no_restart}).start()

    monkeypatch.setattr(ray, "kill", late)
    monkeypatch.setattr("sweeps.schedule.pool.DEVICE_LOST", (FloatingPointError,))
    ended = run(("device-0",))
    monkeypatch.undo()
    assert ended.done == Counter(["device-0"])
    assert tries(tmp_path, "device-0") == 2
    assert len(pids(tmp_path)) == 2


def test_a_full_disk_ends_the_pool(run: Run) -> None:
    with pytest.raises(GaveOut, match=r"^x\.parquet could not be written \(No space left on device\)$"):
        run(("ok-0",), ("disk-1",))


def test_a_bug_is_not_hidden(run: Run) -> None:
    import ray

    with pytest.raises(ray.exceptions.RayTaskError, match="LookupError: a bug"):
        run(("bug-0",))


def test_workers_that_cannot_start_end_the_pool_with_the_cause(run: Run, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(GaveOut, match=r"^no worker stays alive: .*is gone$"):
        run(("ok-0",), workers=2)
