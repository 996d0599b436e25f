"""Two runs against one another: pairing, signs, numbers against scipy, and what is refused."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from sweeps.compare import compare_runs
from sweeps.config import ConfigError, RunConfig
from sweeps.matching import match_cells
from sweeps.records import RunDirectoryError
from sweeps.units import Units, match_images, match_seeds, unit_table
from tests.synthetic_run import Cell, measured, write_run

UNITS = 11


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def compared(root: Path, a: str = "a", b: str = "b") -> tuple[pd.DataFrame, dict]:
    """comparisons.parquet and compare.json of two runs under root."""
    said = compare_runs(RunConfig(root=str(root), a=a, b=b))
    target = root / f"compare-{Path(a).name}-{Path(b).name}"
    assert said.splitlines()[1] == f"report: {target / 'report' / 'index.html'}"
    return pd.read_parquet(target / "comparisons.parquet"), json.loads((target / "compare.json").read_text())


def flipped_p(d: np.ndarray) -> float:
    """Two-sided sign-flip p by enumeration of every pattern."""
    sums = np.abs([np.dot(signs, d) for signs in itertools.product((1, -1), repeat=len(d))])
    return float((sums >= abs(d.sum()) - 1e-12).mean())


# numbers


def test_paired_cells_agree_with_a_paired_t_interval_and_exact_sign_flips(tmp_path, rng):
    g_a, g_b = rng.normal(0.1, 0.3, (4, UNITS)), rng.normal(0.3, 0.3, (4, UNITS))
    write_run(tmp_path / "a", [Cell(g, head=head) for head, g in enumerate(g_a)])
    write_run(tmp_path / "b", [Cell(g, head=head) for head, g in enumerate(g_b)], revision="r2")
    table, facts = compared(tmp_path)
    a, b = measured(g_a), measured(g_b)
    assert table["head"].tolist() == [0, 1, 2, 3]
    assert table["paired"].all()
    assert (table[["n_a", "n_b"]] == UNITS).all(axis=None)
    np.testing.assert_allclose(table["estimate"], (b - a).mean(1), rtol=1e-5)
    interval = stats.ttest_rel(b, a, axis=1).confidence_interval()
    np.testing.assert_allclose(table["ci_low"], interval.low, rtol=1e-5)
    np.testing.assert_allclose(table["ci_high"], interval.high, rtol=1e-5)
    np.testing.assert_allclose(table["p"], [flipped_p(d) for d in b - a], rtol=1e-9)
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(table["p"]), rtol=1e-9)  # one family
    for side, values in (("a", a), ("b", b)):
        own = stats.ttest_1samp(values, 0, axis=1).confidence_interval()
        np.testing.assert_allclose(table[f"mean_{side}"], values.mean(1), rtol=1e-5)
        np.testing.assert_allclose(table[f"low_{side}"], own.low, rtol=1e-5)
        np.testing.assert_allclose(table[f"high_{side}"], own.high, rtol=1e-5)
    assert facts["factors"] == ["the checkpoint"]
    assert {"what": "model.revision", "a": "r1", "b": "r2"} in facts["differences"]


def test_the_values_of_images_are_kept_as_they_were_compared(tmp_path, rng):
    """Side by side where the images are the same, though the runs have them in another order; apart otherwise."""
    g_a, g_b = rng.normal(0.1, 0.3, (2, 12)), rng.normal(0.3, 0.3, (2, 12))
    order = rng.permutation(12)
    names = [f"image-{i}" for i in range(12)]
    write_run(tmp_path / "a", [Cell(g, head=head) for head, g in enumerate(g_a)], images={"natural": names})
    shuffled = {"natural": [names[i] for i in order]}
    write_run(tmp_path / "b", [Cell(g[order], head=head) for head, g in enumerate(g_b)], images=shuffled)
    table, _ = compared(tmp_path)
    images = pd.read_parquet(tmp_path / "compare-a-b" / "images.parquet").set_index("trial_a").loc[table["trial_a"]]
    assert images["paired"].all()
    for row, a, b in zip(images.itertuples(), measured(g_a), measured(g_b), strict=True):
        place = [int(np.argmin(abs(a - value))) for value in row.a]
        assert sorted(place) == list(range(12))
        np.testing.assert_allclose(row.a, a[place], rtol=1e-5)
        np.testing.assert_allclose(row.b, b[place], rtol=1e-5)
    np.testing.assert_allclose([np.mean(row.b - row.a) for row in images.itertuples()], table["estimate"], rtol=1e-4)


def test_pairing_is_worth_what_the_units_share(tmp_path, rng):
    """A shift of .05 under a spread of 1 between images: certain in pairs, invisible between other images."""
    shared = rng.normal(0, 1, 40)
    noise = rng.normal(0, 0.02, 40)
    write_run(tmp_path / "a", [Cell(shared)])
    write_run(tmp_path / "b", [Cell(shared + 0.05 + noise)])
    write_run(tmp_path / "other", [Cell(shared + 0.05 + noise)], images={"natural": [f"other-{i}" for i in range(40)]})
    paired, facts = compared(tmp_path)
    unpaired, other = compared(tmp_path, b="other")
    assert paired["p"].item() < 1e-9
    assert paired["estimate"].item() == pytest.approx(unpaired["estimate"].item(), rel=1e-5)
    assert unpaired["p"].item() > 0.5
    assert facts["factors"] == []
    assert other["factors"] == ["the images"]
    assert not other["pairings"][0]["paired"]


def test_other_images_agree_with_welch(tmp_path, rng):
    g_a, g_b = rng.normal(0.0, 0.2, (3, 30)), rng.normal([[0.0], [0.1], [0.5]], 0.4, (3, 45))
    write_run(tmp_path / "a", [Cell(g, head=head) for head, g in enumerate(g_a)])
    images = {"natural": [f"b-{i}" for i in range(45)]}
    write_run(tmp_path / "b", [Cell(g, head=head) for head, g in enumerate(g_b)], images=images)
    table, _ = compared(tmp_path)
    expected = stats.ttest_ind(measured(g_b), measured(g_a), axis=1, equal_var=False)
    assert not table["paired"].any()
    assert table["n_a"].tolist() == [30] * 3
    assert table["n_b"].tolist() == [45] * 3
    np.testing.assert_allclose(table["estimate"], measured(g_b).mean(1) - measured(g_a).mean(1), rtol=1e-5)
    interval = expected.confidence_interval()
    np.testing.assert_allclose(table["ci_low"], interval.low, rtol=1e-5)
    np.testing.assert_allclose(table["ci_high"], interval.high, rtol=1e-5)
    np.testing.assert_allclose(table["p"], expected.pvalue, rtol=0.2, atol=0.01)  # 9,999 permutations
    assert table["p"].min() >= 1e-4


def test_swapping_the_runs_turns_the_sign_and_nothing_else(tmp_path, rng):
    write_run(tmp_path / "a", [Cell(rng.normal(0, 0.3, UNITS), head=head) for head in range(3)])
    write_run(tmp_path / "b", [Cell(rng.normal(0.4, 0.3, UNITS), head=head) for head in range(3)])
    there, _ = compared(tmp_path)
    back, _ = compared(tmp_path, "b", "a")
    np.testing.assert_allclose(back["estimate"], -there["estimate"])
    np.testing.assert_allclose(back["ci_low"], -there["ci_high"])
    np.testing.assert_allclose(back["p"], there["p"])
    assert there["name"].tolist() == ["b - a"] * 3
    assert back["name"].tolist() == ["a - b"] * 3


def test_verdicts(tmp_path, rng):
    """More, less, within the margin though certain, and unknown."""
    quiet, loud = 0.01 * rng.normal(size=(3, 30)), rng.normal(size=30)
    shifts = np.array([0.3, -0.3, 0.01])[:, None]
    write_run(tmp_path / "a", [Cell(np.zeros(30), head=head) for head in range(4)])
    write_run(tmp_path / "b", [Cell(g, head=head) for head, g in enumerate([*(shifts + quiet), loud])])
    table, _ = compared(tmp_path)
    assert table["verdict"].tolist() == ["more", "less", "same", "undecided"]
    assert (table["q"][:3] < 1e-3).all()


def test_same_is_equivalence_at_the_smaller_margin(tmp_path, rng):
    noise = rng.normal(size=20)
    g = 0.03 + 0.01 * (noise - noise.mean()) / noise.std(ddof=1)
    for margin, verdict in ((0.05, "same"), (0.02, "more")):
        root = tmp_path / str(margin)
        write_run(root / "a", [Cell(np.zeros(20))], margin=0.05)
        write_run(root / "b", [Cell(g)], margin=margin)
        table, facts = compared(root)
        assert facts["margin"] == margin
        assert table["verdict"].tolist() == [verdict]
        write_run(root / "c", [Cell(g)], margin=margin, images={"natural": [f"c-{i}" for i in range(20)]})
        assert compared(root, b="c")[0]["verdict"].tolist() == [verdict]


def test_families_are_layers_in_windows(tmp_path, rng):
    """Two families: q against Simes and Benjamini-Hochberg by hand."""
    g = rng.normal([[0.5], [0.0], [0.0], [0.0]], 0.5, (4, UNITS))
    sites = [(0, 0), (0, 1), (1, 0), (1, 1)]
    write_run(tmp_path / "a", [Cell(np.zeros(UNITS), layer=layer, head=head) for layer, head in sites])
    write_run(tmp_path / "b", [Cell(row, layer=layer, head=head) for row, (layer, head) in zip(g, sites)])
    table, _ = compared(tmp_path)
    p = np.array([flipped_p(row) for row in measured(g)])
    within = np.concatenate([stats.false_discovery_control(p[:2]), stats.false_discovery_control(p[2:])])
    families = np.sort(stats.false_discovery_control([within[:2].min(), within[2:].min()]))
    q = [min(max(families[k - 1], 2 * w / k) for k in (1, 2)) for w in within]
    np.testing.assert_allclose(table["q"], np.minimum(q, 1), rtol=1e-9)


def test_trials_that_stopped_early_are_paired_on_what_both_saw(tmp_path, rng):
    g_a, g_b = rng.normal(size=(2, 12)), rng.normal(size=(2, 12))
    g_a[0, 8:] = np.nan
    g_b[1, 5:] = np.nan
    write_run(tmp_path / "a", [Cell(g, head=head) for head, g in enumerate(g_a)])
    write_run(tmp_path / "b", [Cell(g, head=head) for head, g in enumerate(g_b)])
    table = compared(tmp_path)[0].set_index("head")
    assert table["n_a"].to_dict() == {0: 8, 1: 5}
    for head, n in ((0, 8), (1, 5)):
        d = measured(g_b[head, :n]) - measured(g_a[head, :n])
        assert table.at[head, "estimate"] == pytest.approx(d.mean(), rel=1e-5)
        assert table.at[head, "p"] == pytest.approx(flipped_p(d))


def test_heads_together(tmp_path, rng):
    """Both heads and images are resampled: the interval is wider than over images alone."""
    head = rng.normal(0, 0.3, (12, 1))
    g_a = rng.normal(0, 0.1, (12, 40))
    g_b = g_a + 0.2 + head + rng.normal(0, 0.05, (12, 40))
    write_run(tmp_path / "a", [Cell(g, head=i) for i, g in enumerate(g_a)])
    write_run(tmp_path / "b", [Cell(g, head=i) for i, g in enumerate(g_b)])
    _, facts = compared(tmp_path)
    (claim,) = facts["over_heads"]
    d = g_b - g_a
    assert (claim["heads"], claim["images"]) == (12, 40)
    assert claim["estimate"] == pytest.approx(d.mean(), rel=1e-4)
    half = (claim["ci_high"] - claim["ci_low"]) / 2
    over_heads = 1.96 * np.sqrt(d.mean(1).var() / 12)
    assert half == pytest.approx(over_heads, rel=0.15)
    assert half > 5 * 1.96 * d.mean(0).std(ddof=1) / np.sqrt(40)


# what matches what


def test_cells_match_on_every_axis(tmp_path, rng):
    def cells(layers: int, windows: list[tuple[int, int]], modes: list[str]) -> list[Cell]:
        return [
            Cell(rng.normal(size=5), layer=layer, window=window, mode=mode)
            for layer in range(layers)
            for window in windows
            for mode in modes
        ]

    write_run(tmp_path / "a", cells(3, [(999, 500), (499, 0)], ["zero", "mean"]))
    write_run(tmp_path / "b", cells(2, [(999, 500), (499, 250)], ["mean", "resample"]))
    table, facts = compared(tmp_path)
    assert table[["layer_index", "mode", "t_start", "t_end"]].to_numpy().tolist() == [
        [0, "mean", 999, 500],
        [1, "mean", 999, 500],
    ]
    assert (facts["only_a"], facts["only_b"], facts["across"]) == (10, 6, {})


@pytest.mark.parametrize(
    ("a", "b", "axis", "values"),
    [
        ({"mode": "zero"}, {"mode": "mean"}, "mode", ["zero", "mean"]),
        ({"strength": 1.0}, {"strength": 0.5}, "strength", ["1", "0.5"]),
        ({"dataset": "celeba"}, {"dataset": "lfw"}, "data set", ["celeba", "lfw"]),
        ({"window": (999, 500)}, {"window": (499, 0)}, "window", ["999–500", "499–0"]),
    ],
)
def test_one_value_against_another_is_matched_across(tmp_path, rng, a, b, axis, values):
    write_run(tmp_path / "a", [Cell(rng.normal(size=5), head=head, **a) for head in range(2)])
    write_run(tmp_path / "b", [Cell(rng.normal(size=5), head=head, **b) for head in range(2)])
    table, facts = compared(tmp_path)
    assert facts["across"] == {axis: values}
    assert table["head"].tolist() == [0, 1]
    assert table["group"].nunique() == 2
    assert all(" → ".join(values).replace("–", "-") in group for group in table["group"])


def test_sets_match_by_their_sites_and_layers_by_their_index(tmp_path, rng):
    sites = ("blocks.0.attn:1", "blocks.1.attn:2")
    write_run(tmp_path / "a", [Cell(rng.normal(size=5), level="set", head=-1, sites=sites), Cell(rng.normal(size=5))])
    cells = [
        Cell(rng.normal(size=5), level="set", head=-1, sites=sites[::-1]),
        Cell(rng.normal(size=5), level="set", head=-1, sites=("blocks.0.attn:1", "blocks.1.attn:3")),
        Cell(rng.normal(size=5), sites=("another.path:0",)),
    ]
    write_run(tmp_path / "b", cells)
    table, _ = compared(tmp_path)
    assert table[["level", "sites"]].to_numpy().tolist() == [["set", ", ".join(sites)], ["head", ""]]


def test_metrics_that_both_have_and_the_registered_one_first(tmp_path, rng):
    g = rng.normal(size=(4, 5))
    metrics = ("noise_mse", "edge")
    write_run(tmp_path / "a", [Cell(row, metric=m) for row, m in zip(g, ("x0_mse", *metrics))], metric="x0_mse")
    write_run(tmp_path / "b", [Cell(row, metric=m) for row, m in zip(g, metrics)], metric="edge")
    table, facts = compared(tmp_path)
    assert table["metric"].tolist() == ["noise_mse", "edge"]
    assert facts["metric"] == "edge"  # a's registered metric is not in b


# units


def units(fingerprints: str, *, images: str = "", source: str = "lfw", seed: int = 0, name: str = "natural") -> Units:
    return Units(tuple(images or fingerprints), tuple(fingerprints), (source, ""), (name, seed))


def test_the_same_images_in_another_order_are_paired_image_by_image(tmp_path):
    g = np.array([0.1, 0.5, -0.3, 0.2])
    order = [2, 0, 3, 1]
    names = [f"image-{i}" for i in range(4)]
    write_run(tmp_path / "a", [Cell(g)], images={"natural": names})
    write_run(tmp_path / "b", [Cell(g[order] + 0.5)], images={"natural": [names[i] for i in order]})
    table, facts = compared(tmp_path)
    assert table["ci_high"].item() - table["ci_low"].item() < 1e-5
    assert table["estimate"].item() == pytest.approx(0.5, rel=1e-5)
    assert facts["factors"] == ["the noise"]


def test_units_of_images():
    same = match_images(units("abcd"), units("abcd"))
    assert (same.paired, same.shared_images, same.shared_noise, same.dropped) == (True, True, True, 0)
    more = match_images(units("abcd"), units("abcdefgh"))
    assert (more.a.tolist(), more.b.tolist(), more.dropped) == ([0, 1, 2, 3], [0, 1, 2, 3], 4)
    moved = match_images(units("abcd"), units("dxba"))
    assert (moved.paired, moved.shared_noise, moved.dropped) == (True, False, 2)
    assert list(zip(moved.a.tolist(), moved.b.tolist())) == [(0, 3), (1, 2), (3, 0)]
    assert not match_images(units("abcd"), units("abcd", seed=1)).shared_noise
    few = match_images(units("abcd"), units("wxya"))
    assert (few.paired, few.a.tolist(), few.b.tolist(), few.dropped) == (False, [0, 1, 2, 3], [0, 1, 2], 1)
    assert not match_images(units("abcd"), units("wxyz")).paired


def test_the_same_photographs_at_another_size_are_the_same_units():
    small, large = units("abcd", images="1234"), units("efgh", images="1234")
    assert match_images(small, large).paired
    assert not match_images(small, units("efgh", images="1234", source="celeba")).paired


def test_two_pictures_alike_are_two_units():
    found = match_images(units("aab"), units("baa"))
    assert list(zip(found.a.tolist(), found.b.tolist())) == [(0, 1), (2, 0)]


def test_units_of_generated_images_are_their_seeds(tmp_path, rng):
    same = match_seeds(units("ab"), units("cd"), 5, 3)
    assert (same.paired, same.a.tolist(), same.b.tolist(), same.dropped) == (True, [0, 1, 2], [0, 1, 2], 2)
    for other in (units("ab", seed=1), units("ab", name="other")):
        found = match_seeds(units("ab"), other, 5, 3)
        assert (found.paired, len(found.a), len(found.b), found.dropped) == (False, 5, 3, 0)
    g = rng.normal(size=(2, 6))
    options = {"metric": "contrast", "protocol": "sample"}
    write_run(tmp_path / "a", [Cell(g[0], **options)], metric="contrast")
    images = {"natural": [f"b-{i}" for i in range(6)]}
    write_run(tmp_path / "b", [Cell(g[1], **options)], metric="contrast", images=images)
    write_run(tmp_path / "c", [Cell(g[1], **options)], metric="contrast", images=images, seed=1)
    table, _ = compared(tmp_path)
    assert table["paired"].all()
    assert table["p"].item() == pytest.approx(flipped_p(measured(g[1]) - measured(g[0])))
    assert not compared(tmp_path, b="c")[0]["paired"].any()


def test_a_comparison_says_how_many_seeds_it_used(tmp_path, rng):
    """Not how many images the other protocol had."""
    for name, samples in (("a", 6), ("b", 4)):
        generated = Cell(rng.normal(size=samples), metric="contrast", protocol="sample")
        write_run(tmp_path / name, [Cell(rng.normal(size=UNITS)), generated])
    table, facts = compared(tmp_path)
    pairings = {pairing["protocol"]: (pairing["n_a"], pairing["n_b"]) for pairing in facts["pairings"]}
    assert pairings == {"denoise": (UNITS, UNITS), "sample": (4, 4)}
    assert table.set_index("metric")["n_a"].to_dict() == {"noise_mse": UNITS, "contrast": 4}


def test_what_a_run_says_of_its_units():
    pixels = torch.arange(12.0).view(3, 1, 2, 2)
    images = ImageSet("natural", pixels, ("x", "y", "z"), None, "")
    table = unit_table({"natural": DataSet("natural", 1, images, images)})
    assert table[["dataset", "unit", "image"]].to_numpy().tolist() == [["natural", i, n] for i, n in enumerate("xyz")]
    assert table["fingerprint"].tolist() == [images.take([i]).fingerprint() for i in range(3)]
    assert table["fingerprint"].nunique() == 3


# what is refused


@pytest.fixture
def two_runs(tmp_path, rng) -> Path:
    for name in ("first_run", "second_run"):
        write_run(tmp_path / name, [Cell(rng.normal(size=5))])
    return tmp_path


def refusal(root: Path, a: str, b: str) -> str:
    with pytest.raises((ConfigError, RunDirectoryError)) as refused:
        compare_runs(RunConfig(root=str(root), a=a, b=b))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_runs_by_name_or_by_directory(two_runs):
    compared(two_runs, "first_run", "second_run")
    compared(two_runs, str(two_runs / "first_run"), "second_run")


def test_a_run_that_is_not_there_gets_the_nearest(two_runs):
    said = refusal(two_runs, "first_run", "second_rum")
    assert said.startswith("run.b: no run second_rum; did you mean 'second_run'?")
    elsewhere = refusal(two_runs / "nowhere", str(two_runs / "frst_run"), "second_run")
    assert "run.a: no run" in elsewhere
    assert "did you mean 'first_run'?" in elsewhere


def test_a_run_against_itself(two_runs):
    assert "is run.a too" in refusal(two_runs, "first_run", str(two_runs / "first_run"))


def test_a_newer_run(two_runs):
    (two_runs / "second_run" / "run.json").write_text('{"schema_version": 99}')
    assert "written by a newer version (schema 99" in refusal(two_runs, "first_run", "second_run")


def test_runs_without_a_cell_in_common(two_runs, rng):
    modes = [Cell(rng.normal(size=5), mode=mode) for mode in ("mean", "resample")]
    write_run(two_runs / "modes", modes)
    assert refusal(two_runs, "first_run", "modes") == (
        "run.b: no cell of modes matches one of first_run: mode zero against mean, resample"
    )


def test_runs_without_a_metric_in_common(two_runs, rng):
    write_run(two_runs / "edges", [Cell(rng.normal(size=5), metric="edge")], metric="edge")
    assert "no metric in common: edge against noise_mse" in refusal(two_runs, "first_run", "edges")


def test_runs_without_measurements_or_units(two_runs):
    (two_runs / "second_run" / "units.parquet").unlink()
    assert "lacks units.parquet" in refusal(two_runs, "first_run", "second_run")
    for part in (two_runs / "first_run" / "records").iterdir():
        part.unlink()
    assert "lacks units.parquet" in refusal(two_runs, "first_run", "second_run")
    write_run(two_runs / "third_run", [Cell(np.zeros(5))])
    assert "has no measurements" in refusal(two_runs, "first_run", "third_run")


@pytest.mark.run
def test_the_command_line(two_runs):
    def launch(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "launch.py", "mode=compare", f"run.root={two_runs}", *overrides]
        root = Path(__file__).resolve().parents[1]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)

    done = launch("run.a=first_run", "run.b=second_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 cell (paired) by noise_mse, second_run against first_run")
    missing = launch("run.a=first_run", "run.b=secnd_run")
    assert missing.returncode == 2
    assert missing.stderr.strip().count("\n") == 0
    assert "did you mean 'second_run'?" in missing.stderr
    assert launch("run.a=first_run").returncode == 2


def trials_of(**changed: object) -> pd.DataFrame:
    """A plan of one trial."""
    row = {
        "trial_id": "t", "dataset": "d", "protocol": "denoise", "level": "head", "layer": "blocks.0.attn1",
        "layer_index": 0, "head": 1, "stream": "image", "mode": "zero", "strength": 1.0, "t_start": 999, "t_end": 0,
        "sites": ["blocks.0.attn1:1"], "phase": "grid", "factor": 1.0,
    }  # fmt: skip
    return pd.DataFrame([row | changed])


def test_blocks_are_matched_by_their_paths_and_heads_by_their_indices():
    renamed = {"layer": "layers.0.attn", "sites": ["layers.0.attn:1"]}
    assert len(match_cells(trials_of(), trials_of(**renamed)).cells) == 1
    block = {"level": "block", "head": -1, "layer": "blocks.0", "sites": ["blocks.0.attn1:-1", "blocks.0.attn2:-1"]}
    match = match_cells(trials_of(**block), trials_of(**block))
    assert match.cells["sites"].tolist() == ["blocks.0"]
    assert match_cells(trials_of(**block), trials_of(**block | {"layer": "layers.0"})).cells.empty
    assert match_cells(trials_of(**block), trials_of(**block | {"level": "stage"})).cells.empty


def test_scaling_by_different_factors_is_different_modes():
    twice, thrice = (trials_of(mode="scale", factor=factor) for factor in (2.0, 3.0))
    assert match_cells(twice, thrice).across == {"mode": ("scale x2", "scale x3")}
    both = pd.concat([twice, trials_of(trial_id="zero")])
    assert match_cells(both, pd.concat([thrice, trials_of(trial_id="zero")])).cells["mode"].tolist() == ["zero"]
    before = trials_of().drop(columns="factor")  # a plan of an older version
    assert len(match_cells(before, trials_of()).cells) == 1
