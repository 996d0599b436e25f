import base64
import io

import numpy as np
import pandas as pd
from PIL import Image

from sweeps.report.reported_run import read_run
from sweeps.report.samples import sample_gallery


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_each_site_once_in_its_strongest_sampled_cell(fake_run):
    run = read_run(fake_run)
    gallery = sample_gallery(run)
    assert gallery.available == 60
    assert set(gallery.by_dataset) == {"synthetic_faces", "lfw_faces"}
    sampled = run.trials[run.trials["trial_id"].isin({path.stem for path in (fake_run / "samples").iterdir()})]
    cell = ["dataset", "level", "layer_index", "head", "mode", "window_index"]
    with_samples = run.cells.merge(sampled[cell], on=cell)
    for dataset, grids in gallery.by_dataset.items():
        sites = [grid.site for grid in grids]
        assert len(set(sites)) == len(sites)
        here = with_samples[(with_samples["dataset"] == dataset) & (with_samples["verdict"] == "degraded")]
        heads = here[here["level"] == "head"]
        strongest = heads.loc[heads["percent"].idxmax()]
        assert sites[0] == f"L{strongest['layer_index']}H{strongest['head']}"
        assert grids[0].trial_id == strongest["trial_id"]


def test_the_picture_is_the_one_of_the_same_cell(fake_run):
    run = read_run(fake_run)
    grid = sample_gallery(run).by_dataset["lfw_faces"][0]
    trial = run.trials.set_index("trial_id").loc[grid.trial_id]
    cell = ["dataset", "layer_index", "head", "mode", "window_index"]
    same = run.trials[(run.trials[cell] == trial[cell]).all(axis=1) & (run.trials["protocol"] == "sample")]
    expected = Image.open(fake_run / "samples" / f"{same['trial_id'].item()}.png")
    np.testing.assert_array_equal(np.asarray(decoded(grid.uri)), np.asarray(expected))


def test_large_grids_are_made_smaller_to_keep_the_budget(small_run):
    noise = np.random.default_rng(0).integers(0, 255, (1024, 768, 3), dtype=np.uint8)
    for path in (small_run / "samples").iterdir():
        Image.fromarray(noise).save(path)
    gallery = sample_gallery(read_run(small_run), budget=3_000_000)
    assert gallery.shown > 3
    grids = [grid for part in gallery.by_dataset.values() for grid in part]
    assert sum(len(grid.uri) for grid in grids) < 3_500_000
    assert all(decoded(grid.uri).size == (grid.width, grid.height) == (600, 800) for grid in grids)


def test_a_torn_file_is_counted_and_left_out(small_run):
    files = list((small_run / "samples").iterdir())
    before = sample_gallery(read_run(small_run)).shown
    for path in files:
        path.write_bytes(path.read_bytes()[:60])
    gallery = sample_gallery(read_run(small_run))
    assert gallery.shown == 0
    assert gallery.unreadable == before > 0


def test_uncalled_effects_show_no_samples(small_run):
    path = small_run / "effects.parquet"
    pd.read_parquet(path).assign(verdict="inconclusive").to_parquet(path)
    assert sample_gallery(read_run(small_run)).by_dataset == {}
