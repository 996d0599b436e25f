"""Any file of a finished run, damaged in any way: the same effects again, or one line and the exit code that it has.

Never a traceback, and never other numbers without a word.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

import launch
from sweeps.composition import config_folder, register
from sweeps.records import SCHEMA_VERSION, RunDirectory
from sweeps.report.profiled import read_profiled
from sweeps.report.reported_run import read_run
from sweeps.report.samples import sample_gallery
from sweeps.seals import json_bytes
from tests.fuzzing import fuzz
from tests.sweeps.tiny import PLAIN, assert_same_effects, run_whole

pytestmark = pytest.mark.run

GRID = (
    "sweep.layers=[0]", "sweep.windows=1", "sweep.images=8", "sweep.profile.images=8", "sweep.profile.type_images=6",
    "sweep.profile.matched=2", "sweep.profile.map_heads=1", "sweep.profile.complexity=false",
)  # fmt: skip
MODES = ("run", "aggregate", "report", "compare", "status")


@dataclass(frozen=True)
class Damage:
    """How the bytes of a file change; places and lengths are shares of its length."""

    kind: str
    place: float
    length: float
    byte: int

    def of(self, content: bytes) -> bytes:
        begin = min(int(self.place * len(content)), max(0, len(content) - 1))
        end = max(begin + 1, begin + int(self.length * len(content)))
        before, chosen, after = content[:begin], content[begin:end], content[end:]
        return {
            "flip": lambda: before + bytes(b ^ self.byte for b in chosen[:1]) + chosen[1:] + after,
            "overwrite": lambda: before + bytes([self.byte]) * len(chosen) + after,
            "zero": lambda: before + bytes(len(chosen)) + after,
            "delete": lambda: before + after,
            "insert": lambda: before + bytes([self.byte]) + chosen + after,
            "duplicate": lambda: before + chosen + chosen + after,
            "truncate": lambda: before,
            "empty": lambda: b"",
            "append": lambda: content + bytes([self.byte]),
            "gone": lambda: content,
        }[self.kind]()


KINDS = ("flip", "flip", "overwrite", "zero", "delete", "insert", "duplicate", "truncate", "empty", "append", "gone")
DAMAGES = st.builds(
    Damage,
    st.sampled_from(KINDS),
    st.floats(0, 1),
    st.one_of(st.just(0.0), st.floats(0, 0.3)),
    st.integers(1, 255),
)


@dataclass(frozen=True)
class Finished:
    """Two finished runs side by side under ``root``, and where they are copied to be damaged."""

    root: Path
    scratch: Path
    settings: list[str]
    compared: pd.DataFrame | None = None

    def copy(self) -> RunDirectory:
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.copytree(self.root, self.scratch)
        return RunDirectory(self.scratch / "a")

    @property
    def intact(self) -> RunDirectory:
        return RunDirectory(self.root / "a")

    def comparison(self) -> pd.DataFrame:
        return pd.read_parquet(self.scratch / "compare-a-b" / "comparisons.parquet")

    def said(self, mode: str) -> tuple[int, str]:
        """Exit code and output of ``launch.py mode=...`` on the copy, in this process."""
        given = [*self.settings, *GRID, f"mode={mode}", f"run.root={self.scratch}", "run.name=a"]
        given += ["run.a=a", "run.b=b"] if mode == "compare" else []
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            composed = compose("config", overrides=[*PLAIN, *given])
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = launch._launch(composed, [])
        return code, said.getvalue()


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    register()
    root = tmp_path_factory.mktemp("finished")
    for name, extra in (("a", []), ("b", ["sweep.seed=1"])):
        run_whole(root / f".{name}", *settings, *GRID, f"run.name={name}", *extra)
        shutil.move(root / f".{name}" / name, root / name)
        (root / f".{name}").rmdir()
    (root / "a" / "lock.json").write_text('{"host": "gone", "pid": 1}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeps.locks.STALE_SECONDS", 0.0)
        patch.setattr("sweeps.driver.write_report", read_for_report)
        patch.setattr("sweeps.compare.write_comparison_page", lambda target: target)
        made = Finished(root, tmp_path_factory.mktemp("scratch") / "runs", settings)
        made.copy()
        assert made.said("compare")[0] == 0
        yield replace(made, compared=made.comparison())


def read_for_report(path: Path) -> Path:
    """What the report reads; to draw it takes seconds, and has its own tests."""
    run = read_run(path)
    read_profiled(run)
    sample_gallery(run)
    return path


def files_of(directory: RunDirectory) -> list[str]:
    """A record, a sample and a block of profiles stand for all of them."""
    there = sorted(p.relative_to(directory.path).as_posix() for p in directory.path.rglob("*") if p.is_file())
    kinds = {(Path(name).parent.as_posix(), Path(name).name.partition("-")[0][:5]): name for name in there}
    few = {folder: name for (folder, _), name in kinds.items() if folder in ("records", "samples")}
    return sorted({*few.values(), *(name for (folder, _), name in kinds.items() if folder not in few)})


def test_the_files_of_a_run_are_all_among_those_that_are_damaged(finished: Finished) -> None:
    there = files_of(finished.intact)
    assert {name for name in there if "/" not in name} == {
        "comparisons.parquet", "config.yaml", "diagnostics.parquet", "effects.parquet", "heads.parquet", "lock.json",
        "progress.json", "run.json", "trials.parquet", "units.parquet",
    }  # fmt: skip
    assert {Path(name).parent.name for name in there if "/" in name} == {"records", "samples", "profiles"}
    assert {"profiles/layers.json", "profiles/sets.parquet", "profiles/maps.parquet"} < set(there)


@fuzz(12, shrink=False)
@given(st.integers(0, 10**6), DAMAGES, st.sampled_from(MODES))
def test_any_damage_of_any_file_is_repaired_or_said(finished: Finished, which: int, damage: Damage, mode: str) -> None:
    names = files_of(finished.intact)
    name = names[which % len(names)]
    if damage.kind == "gone" and mode != "run" and name.startswith(("records/", "profiles/")):
        return  # what is not there was not measured yet, which is no damage
    directory = finished.copy()
    spoilt = directory.path / name
    before = spoilt.read_bytes()
    spoilt.write_bytes(damage.of(before))
    changed = spoilt.read_bytes() != before
    if damage.kind == "gone":
        spoilt.unlink()
    code, said = finished.said(mode)
    if mode == "run" and code == 2:
        assert name == "run.json", "a sweep writes everything else anew"
        assert refusal(said).endswith("run.json is damaged, or was edited; delete it to go on without it")
        spoilt.unlink()
        code, said = finished.said(mode)
    assert "Traceback" not in said
    if code == 2:
        assert f"{directory.path}" in refusal(said)
        return
    assert code == 0
    if mode == "status":
        return
    damaged_part = changed and name.startswith("records/")
    assert ("damaged" in said) == damaged_part, said
    if mode == "run" or not damaged_part:
        assert_same_effects(directory, finished.intact)
        if mode == "compare":
            pd.testing.assert_frame_equal(finished.comparison(), finished.compared)


def refusal(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("mode", ["run", "plan", "track", "aggregate", "report", "compare", "status"])
def test_a_newer_version_is_refused_by_name_in_every_mode(finished: Finished, mode: str) -> None:
    """And nothing of it is touched."""
    directory = finished.copy()
    directory.run.write_bytes(json_bytes(directory.read_run() | {"schema_version": SCHEMA_VERSION + 1}))
    before = contents(directory.path)
    code, said = finished.said(mode)
    assert code == 2
    assert refusal(said) == (
        f"error: {directory.path} was written by a newer version (schema {SCHEMA_VERSION + 1}, "
        f"this one knows {SCHEMA_VERSION})"
    )
    assert contents(directory.path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock.json"}
