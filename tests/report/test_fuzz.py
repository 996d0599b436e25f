"""Random tables, as no sweep would leave them: the page is written and valid, and all markup in it is its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_run import FakeSweep, write_fake_run
from hypothesis import given
from hypothesis import strategies as st
from page_parts import PageParts

from sweeps.records import RunDirectoryError
from sweeps.report import write_report
from tests.fuzzing import fuzz

HOSTILE = "</script></style></textarea><hostile-tag onfuzz=1>\"'`<!--&amp;${x}{{7*7}}$\\frac{"
TEXTS = [
    HOSTILE, "\x00", "\x1b[2J\x07\x7f\x85", "\u202ertl\u202c", "", " ", "\n\r\t", "é" * 400, "a|b | c", "nan", "None",
    "\\",    "../../../etc/passwd", "javascript:hostile()", "]]>", "%s%d{}", "=1+1", "\ufffd\ufffe",
]  # fmt: skip
CONTRAST_TEXTS = [*TEXTS, "data set contrast: b - a", "complexity ratio: x"]
NUMBERS = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1.0, 1e308, -1e308, 5e-324, 1e-12, 1e6, -1e6]
COUNTS = [1, 2, 10**9]
COLUMNS = {
    "effects.parquet": {
        "n": COUNTS,
        **dict.fromkeys(("mean_log_ratio", "percent", "ci_low", "ci_high", "d_z"), NUMBERS),
        **dict.fromkeys(("p_degraded", "p", "q", "q_by"), NUMBERS),
        "verdict": ["degraded", "improved", "negligible", "inconclusive", None],
        "stopped": ["decided", "futile", None, HOSTILE],
    },
    "trials.parquet": {
        **dict.fromkeys(("model", "dataset", "layer", "stream", "mode"), TEXTS),
    },
    "comparisons.parquet": {
        **dict.fromkeys(("name", "group", "metric"), CONTRAST_TEXTS),
        **dict.fromkeys(("estimate", "ci_low", "ci_high", "p", "q"), NUMBERS),
        **dict.fromkeys(("n_a", "n_b"), COUNTS),
    },
    "diagnostics.parquet": dict.fromkeys(
        ("skewness", "half_a", "half_b", "rank", "rank_low", "rank_high", "ranked", "rank_images"), NUMBERS
    ),
    "failures.parquet": {"error": TEXTS, "traceback": TEXTS, "attempts": [0, -1, 10**9]},
}  # fmt: skip
OPTIONAL = ("comparisons.parquet", "diagnostics.parquet", "failures.parquet", "samples")


@dataclass(frozen=True)
class Change:
    """A value in a share of the rows of a column, drawn from ``seed``."""

    table: str
    column: str
    value: Any
    share: float
    seed: int

    def apply(self, run: Path) -> None:
        path = run / self.table
        if not path.exists():
            return
        frame = pd.read_parquet(path)
        chosen = np.random.default_rng(self.seed).random(len(frame)) < self.share
        column = frame[self.column]
        if isinstance(self.value, float):
            column = pd.to_numeric(column, errors="coerce").astype(float)
        elif isinstance(self.value, str) or self.value is None:
            column = column.astype(object)
        # What names a cell is made another name, and not the same for all: no plan has a cell twice.
        value = self.value + column.astype(str) if self.table == "trials.parquet" else self.value
        frame[self.column] = column.where(~chosen, value)
        frame.to_parquet(path)


CHANGES = st.sampled_from(sorted(COLUMNS)).flatmap(
    lambda table: st.sampled_from(sorted(COLUMNS[table])).flatmap(
        lambda column: st.builds(
            Change,
            st.just(table),
            st.just(column),
            st.sampled_from(COLUMNS[table][column]),
            st.sampled_from([0.1, 0.5, 1.0]),
            st.integers(0, 99),
        )
    )
)
ROWS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "all": lambda frame: frame,
    "one": lambda frame: frame.iloc[:1],
    "none": lambda frame: frame.iloc[:0],
}


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = FakeSweep(layers=2, heads=2, windows=2, modes=("zero",), samples=3, metrics=("noise_mse", "edge"))
    return write_fake_run(tmp_path_factory.mktemp("runs") / "tiny", sweep)


def plain_tags(page: str) -> PageParts:
    """The page, which nothing that was put into it has changed: no tag, attribute, script or address of its own."""
    assert page.rstrip().endswith("</html>")
    assert "\x00" not in page
    parts = PageParts(page)
    assert "hostile-tag" not in {tag for tag, _ in parts.tags}
    for tag, attributes in parts.tags:
        assert "onfuzz" not in attributes, tag
        for name in ("href", "src", "action"):
            address = (attributes.get(name) or "").strip()
            assert address == "" or address.startswith(("#", "data:", "https://arxiv.org/")), (tag, address)
    return parts


@pytest.mark.filterwarnings("ignore")  # of what the statistics of such numbers are
@fuzz(4, shrink=False)
@given(
    st.lists(CHANGES, min_size=3, max_size=12),
    st.sampled_from([*ROWS, "all", "all"]),
    st.lists(st.sampled_from(OPTIONAL), max_size=2),
    st.sampled_from(TEXTS),
)
def test_whatever_the_tables_hold_the_page_is_written(
    tiny_run: Path, tmp_path: Path, changes: list[Change], rows: str, absent: list[str], text: str
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(tiny_run, run)
    for change in changes:
        change.apply(run)
    effects = pd.read_parquet(run / "effects.parquet")
    ROWS[rows](effects).to_parquet(run / "effects.parquet")
    for name in absent:
        shutil.rmtree(run / name) if name == "samples" else (run / name).unlink(missing_ok=True)
        (run / "samples").mkdir(exist_ok=True)
    facts = json.loads((run / "run.json").read_text())
    facts |= {"command": text, "device": text, "machine": text, "git_commit": text, "versions": {text: text}}
    (run / "run.json").write_text(json.dumps(facts))
    plain_tags(write_report(run).read_text(encoding="utf-8"))


def test_cells_that_are_no_grid(tiny_run: Path, tmp_path: Path) -> None:
    """Some trials of another layer, head, window and strength than all others."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    trials = pd.read_parquet(run / "trials.parquet")
    far = trials["head"] == 0
    for column in ("layer_index", "head", "window_index"):
        trials[column] += 40 * far
    trials["strength"] = trials["strength"].where(~far, 1e-9)
    trials["t_start"] = trials["t_start"].where(~far, 0)
    trials.to_parquet(run / "trials.parquet")
    plain_tags(write_report(run).read_text(encoding="utf-8"))


def test_hostile_text_everywhere_at_once(tiny_run: Path, tmp_path: Path) -> None:
    """In every text column and every optional fact, in one page."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for table, column in [
        ("trials.parquet", "model"), ("trials.parquet", "layer"), ("trials.parquet", "stream"),
        ("trials.parquet", "mode"), ("trials.parquet", "dataset"), ("comparisons.parquet", "group"),
        ("failures.parquet", "error"), ("failures.parquet", "traceback"),
    ]:  # fmt: skip
        frame = pd.read_parquet(run / table)
        frame[column] = HOSTILE + "\x00" + frame[column].astype(str)
        frame.to_parquet(run / table)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"sweep": {"name": HOSTILE, "modes": [HOSTILE]}}))
    parts = plain_tags(write_report(run).read_text(encoding="utf-8"))
    assert "hostile-tag onfuzz=1" in "".join(parts.text), "it is shown as text"


@pytest.mark.parametrize("column", ["verdict", "metric", "trial_id"])
def test_what_cannot_be_understood_is_refused_in_one_line(tiny_run: Path, tmp_path: Path, column: str) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    effects = pd.read_parquet(run / "effects.parquet")
    effects.assign(**{column: HOSTILE}).to_parquet(run / "effects.parquet")
    with pytest.raises(RunDirectoryError, match=r"\A[^\n]+\Z"):
        write_report(run)
