"""What befalls stores: they go away, refuse, hang, and hold torn files; nothing measured is lost or counted twice."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.config import Config, ConfigError
from sweeps.driver import execute
from sweeps.locks import RunLock
from sweeps.records import GaveOut, RunDirectory
from sweeps.run import Runner
from sweeps.stores import Store, bounded, in_parallel
from sweeps.uris import Uri
from sweeps.working_copies import _travels
from tests.sweeps.stores.conftest import BUCKET, Place, copy_in
from tests.sweeps.stores.s3_server import S3Server
from tests.sweeps.tiny import assert_same_effects, command, composed, duplicated_trials, environment

SMALL_LEASES = "cluster.lease_seconds=1e-6"


@pytest.fixture
def s3(server: S3Server, request: pytest.FixtureRequest) -> str:
    """A root of this test's own."""
    return server.uri(f"{BUCKET}/{request.node.name.partition('[')[0]}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.stores.WAITS", (0.01,))
    monkeypatch.setattr("sweeps.working_copies.EVERY", 0.02)


def test_a_store_that_goes_away_costs_nothing_measured(
    server: S3Server,
    s3: str,
    settings: list[str],
    machine: Callable[[str], Path],
    undisturbed: RunDirectory,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
) -> None:
    line = [*settings, f"run.root='{s3}'", SMALL_LEASES]
    run, leases = Runner.run, [0]

    def goes_away(self: Runner, lease: object) -> object:
        leases[0] += 1
        if leases[0] == 6:
            server.stop()
        return run(self, lease)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", goes_away)
        with pytest.raises(GaveOut, match=r"^s3://bucket/.* cannot be written \(NETWORK_CONNECTION: .*\)$") as gave_out:
            execute(composed(*line))
    assert "\n" not in str(gave_out.value)
    kept = copy_in(machine("a")).recorded()
    assert len(kept) >= 6
    server.start()
    measured.clear()
    assert execute(composed(*line)) == 0
    assert set(measured) == undisturbed.recorded() - kept
    machine("b")
    assert execute(composed(*line)) == 0
    directory = copy_in(machine("b"))
    assert_same_effects(directory, undisturbed)
    assert duplicated_trials(directory) == 0
    assert set(measured) == undisturbed.recorded() - kept, "everything was in the store"


@pytest.mark.run
def test_a_driver_killed_with_its_machine_loses_nothing_that_was_published(
    server: S3Server,
    s3: str,
    settings: list[str],
    machine: Callable[[str], Path],
    undisturbed: RunDirectory,
    measured: list[str],
    tmp_path: Path,
) -> None:
    line = [*settings, f"run.root='{s3}'", SMALL_LEASES]
    place = Uri.parse(s3).place

    def published() -> set[str]:
        return {name.partition("/")[2] for name in server.files(place) if "/records/" in name}

    process = subprocess.Popen(command(*line), cwd=tmp_path, env=environment(), stdout=-1, stderr=-1, text=True)
    deadline = time.monotonic() + 600
    while len(published()) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    names = published()

    machine("b")
    assert execute(composed(*line)) == 0
    directory = copy_in(machine("b"))
    before = RunDirectory(directory.path)
    saved = {i for name in names for i in before._trials_of(before.path / name) or ()}
    assert len(saved) >= 3
    assert not set(measured) & saved  # the server may have taken more than was seen just after the kill
    assert set(measured) < undisturbed.recorded()
    assert_same_effects(directory, undisturbed)
    assert duplicated_trials(directory) == 0
    assert not [name for name in server.files(place) if "/claims/" in name], "that of the dead driver is gone"


def test_a_torn_part_in_the_store_is_set_aside_there_and_measured_again(
    place: Place,
    sweep: Callable[..., Config],
    machine: Callable[[str], Path],
    undisturbed: RunDirectory,
    measured: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute(sweep()) == 0
    here = copy_in(machine("a"))
    part = sorted(here.records.glob("*.parquet"))[0]
    lost = set(here._trials_of(part) or ())
    Store.open(Uri.parse(place.root)).child(here.path.name).write(f"records/{part.name}", part.read_bytes()[:-100])
    machine("b")
    measured.clear()
    assert execute(sweep()) == 0
    assert f"damaged part {part.name}: set aside, its trials are measured again" in capsys.readouterr().err
    assert set(measured) == lost
    assert_same_effects(copy_in(machine("b")), undisturbed)
    records = {name for name in place.run()[1] if name.startswith("records/")}
    assert f"records/{part.name}" not in records
    assert f"records/{part.stem}.damaged" in records
    machine("c")
    measured.clear()
    assert execute(sweep()) == 0
    assert measured == []


def test_reading_beside_a_driver_of_this_machine_fetches_nothing(
    server: S3Server, s3: str, settings: list[str], machine: Callable[[str], Path]
) -> None:
    line = [*settings, f"run.root='{s3}'", "sweep.samples=0", "run.name=mine"]
    assert execute(composed(*line)) == 0
    directory = copy_in(machine("a"))
    with RunLock(directory.path):
        directory.write_run({"finished": "not yet"})  # the driver has not published it yet
        newer = directory.run.read_bytes()
        server.requests.clear()
        assert execute(composed(*line, "mode=report")) == 0
        assert directory.run.read_bytes() == newer
    assert server.count("GET") == 0
    written = {key.rpartition("/")[2] for operation, key in server.requests if operation == "PUT"}
    assert "effects.parquet" in written
    assert not any(name.endswith(".png") or "-" in name for name in written), "no record and no sample again"


# Refusals, before any work


def test_what_the_store_refuses(
    server: S3Server,
    s3: str,
    settings: list[str],
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def refusal(root: str, mode: str = "run") -> str:
        with pytest.raises(ConfigError) as refused:
            execute(composed(*settings, f"run.root='{root}'", f"mode={mode}"))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert (
        refusal(server.uri("buckte/runs"))
        == "run.root: no bucket 'buckte' in this store; did you mean 'bucket'? valid: bucket"
    )
    assert "cannot be used (Unexpected query parameter in S3 URI: 'regoin')" in refusal(f"{s3}&regoin=x")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        away = f"s3://bucket/runs?endpoint_override={address}&scheme=http&region=x"
        assert "run.root: s3://bucket/runs cannot be used (NETWORK_CONNECTION: " in refusal(away)
        nobody.listen()
        monkeypatch.setattr("sweeps.stores.OPENING_SECONDS", 0.2)
        assert refusal(away) == "run.root: s3://bucket/runs cannot be used (no answer within 0 s)"
    monkeypatch.setattr("sweeps.stores.OPENING_SECONDS", 30.0)
    monkeypatch.setattr(server, "refuses", lambda operation, key: operation == "LIST")
    assert "cannot be used (ACCESS_DENIED: " in refusal(s3, "report")
    monkeypatch.setattr(server, "refuses", lambda operation, key: operation == "PUT")
    assert "cannot be written (ACCESS_DENIED: " in refusal(s3)
    assert measured == []
    assert server.files(Uri.parse(s3).place) == {}
    (tmp_path / "file").touch()
    assert "run.root: " in refusal(f"file://{tmp_path / 'file' / 'runs'}")


# Requests


class Flaky:
    """A file system that fails some times, and then does nothing."""

    type_name = "flaky"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def delete_file(self, _: str) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def get_file_info(self, _: object) -> list[object]:
        self.delete_file("")
        return []


def test_a_request_that_fails_is_tried_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.stores.WAITS", (0, 0, 0))
    uri = Uri.parse("s3://bucket/runs")
    three = Flaky(*[OSError("AWS Error SLOW_DOWN during DeleteObject operation: Slow down (Request ID: x)")] * 3)
    Store(uri, three, "bucket").delete("x")
    assert three.errors == []
    four = Flaky(*[OSError("AWS Error SLOW_DOWN during DeleteObject operation: Slow down (Request ID: x)")] * 4)
    with pytest.raises(GaveOut, match=r"^s3://bucket/runs cannot be deleted \(SLOW_DOWN: Slow down\)$"):
        Store(uri, four, "bucket").delete("x")
    final = Flaky(*[OSError("AWS Error ACCESS_DENIED during DeleteObject operation: No")] * 2)
    with pytest.raises(GaveOut, match=r"ACCESS_DENIED: No"):
        Store(uri, final, "bucket").delete("x")
    assert len(final.errors) == 1, "trying that again is vain"
    five = Flaky(*[OSError("AWS Error NETWORK_CONNECTION during ListObjectsV2 operation: no route")] * 5)
    with pytest.raises(GaveOut, match=r"^s3://bucket/runs cannot be listed \(NETWORK_CONNECTION: no route\)$"):
        Store(uri, five, "bucket").children()
    assert Store(uri, five, "bucket").children() == []


def test_a_request_that_hangs_is_given_up() -> None:
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        bounded(lambda: time.sleep(60), 0.05)
    with pytest.raises(KeyError):
        bounded(lambda: {}["x"], 60)
    assert bounded(lambda: 3, 60) == 3


def test_many_at_once() -> None:
    done: list[int] = []
    in_parallel(done.append, range(100))
    assert sorted(done) == list(range(100))
    in_parallel(done.append, [])

    def fails(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"\d"):
        in_parallel(fails, range(100))


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("records/a.parquet", True), ("report/figures/a b.png", True), ("run.json", True), ("lock.json", False),
        ("../x", False), ("records/../../x", False), (".sync", False), ("records/.a.tmp", False), ("a\\b", False),
        ("wandb/run", False), ("claims/x.json", False), ("/etc/passwd", False), ("tune/x", False),
    ],
)  # fmt: skip
def test_what_goes_into_a_store_or_comes_from_one(name: str, travels: bool) -> None:
    assert _travels(name) == travels
