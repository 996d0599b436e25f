"""Files on their way to other machines: whole, in pieces, and once a machine however many workers ask for them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps import travel
from sweeps.records import RunDirectory
from sweeps.run import RunnerSpec, SubjectSpec
from sweeps.travel import FileServer, Item, Luggage, Mailbox, Piece, Place

Read = Callable[[str, Place], tuple[list[Piece], Place | None]]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(travel, "PIECE_BYTES", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a file of three pieces, an empty one, and one of exactly a piece."""
    folder = tmp_path / "driver" / "model"
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "weights").write_bytes(bytes(range(20)))
    (folder / "empty").touch()
    (folder / "index").write_bytes(b"1234567")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def on_another_machine(path: Path) -> Item:
    """Where the same path holds other files, or none."""
    return replace(Item.of(str(path)), digest=Item.of(str(path)).digest[::-1])


def test_a_folder_arrives_whole_and_is_fetched_once_by_all_workers_of_a_machine(model: Path) -> None:
    item, server, reads = on_another_machine(model), FileServer(), Counter[Place]()
    begun = threading.Barrier(4)

    def read(path: str, place: Place) -> tuple[list[Piece], Place | None]:
        reads[place] += 1
        return server.read(path, place)

    places: list[str] = []

    def work() -> None:
        begun.wait(timeout=60)
        places.append(travel.fetch(item, read))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(places) == 4
    assert len(set(places)) == 1
    assert content(Path(places[0])) == content(model)
    assert Path(places[0]).name == "model"
    assert set(reads.values()) == {1}, "every piece once, though four asked"
    assert len(reads) >= 4, "in pieces"
    assert travel.fetch(item, no_reading) == places[0], "and not by later ones either"


def no_reading(path: str, place: Place) -> tuple[list[Piece], Place | None]:
    raise AssertionError("it is there already")


def test_what_lies_at_the_same_place_is_not_fetched(model: Path) -> None:
    assert travel.fetch(Item.of(str(model)), no_reading) == str(model)


def test_a_single_file_keeps_its_name(model: Path) -> None:
    file = model / "transformer" / "weights"
    found = Path(travel.fetch(on_another_machine(file), FileServer().read))
    assert (found.name, found.read_bytes()) == ("weights", file.read_bytes())


def test_a_fetch_that_is_cut_off_leaves_nothing_and_is_begun_again(model: Path, tmp_path: Path) -> None:
    item, server, calls = on_another_machine(model), FileServer(), []

    def breaks(path: str, place: Place) -> tuple[list[Piece], Place | None]:
        calls.append(place)
        if len(calls) == 3:
            raise ConnectionError("the driver is gone")
        return server.read(path, place)

    with pytest.raises(ConnectionError):
        travel.fetch(item, breaks)
    assert not travel.cached(item).exists()
    assert [p for p in travel.cache_folder().iterdir() if p.is_dir()] == []
    assert content(Path(travel.fetch(item, server.read))) == content(model)


def test_other_weights_at_the_same_path_are_another_item(model: Path) -> None:
    before = Item.of(str(model))
    (model / "index").write_bytes(b"12345678")
    assert Item.of(str(model)) != before


def test_a_driver_outside_of_the_cluster_sends_its_files_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As through ray://: the server cannot read the driver's disk, and gets a copy, which later drivers find."""
    item = on_another_machine(model)
    server = FileServer()
    assert not server.keeps(item)
    for pieces in travel.all_pieces(item.path, FileServer().read):
        server.receive(item, pieces)
    server.keep(item)
    assert FileServer().keeps(item), "by another server too"
    expected = content(model)
    for file in model.rglob("*"):
        if file.is_file():
            file.write_bytes(b"changed on the driver's disk since")
    copy = travel.cached(item)
    assert content(copy) == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parent / "worker"))
    assert content(Path(travel.fetch(item, server.read))) == expected


def test_what_comes_back_is_published_and_nothing_else(tmp_path: Path) -> None:
    worker, driver = RunDirectory(tmp_path / "worker"), RunDirectory(tmp_path / "run")
    for directory in (worker, driver):
        directory.create(directory.records, directory.samples)
    (worker.records / "0a-1b.parquet").write_bytes(b"rows")
    (worker.samples / "2c.png").write_bytes(b"pixels")
    (worker.records / ".0a-1b.parquet-x.tmp").write_bytes(b"half")
    mailbox = Mailbox()
    mailbox.leave(travel.take_files(worker.path))
    assert not list(worker.records.glob("*.parquet"))
    mailbox.leave({"records/3d-4e.parquet": b"more"})
    travel.deliver(mailbox.take(), driver.path)
    assert mailbox.take() == {}
    assert content(driver.path) == {
        "records/0a-1b.parquet": b"rows", "records/3d-4e.parquet": b"more", "samples/2c.png": b"pixels",
    }  # fmt: skip


def test_a_worker_sees_whether_it_shares_the_run_directory(tmp_path: Path) -> None:
    subject = SubjectSpec(model_name="", model_path="", dtype="", device="cpu", sources=(), images=0)
    spec = RunnerSpec(subject=subject, rows=0, threads=0, run_dir=str(tmp_path / "run"), metric="")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock.json").write_text('{"host": "driver", "pid": 1}')
    luggage = Luggage.of(spec, None)
    assert luggage.shares(spec.run_dir)
    assert not luggage.shares(str(tmp_path / "nothing here"))
    (tmp_path / "run" / "lock.json").write_text('{"host": "another driver", "pid": 1}')
    assert not luggage.shares(spec.run_dir)
