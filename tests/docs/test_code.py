"""The Python on every page runs as it stands, from the top of its page to the bottom, and is as short as it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from tests.docs.pages import DOCS, PAGES, Block, blocks
from tests.sweeps.tiny import save_pictures

CODE = {page: found for page in PAGES if (found := blocks(page, "python"))}
LONGEST = {DOCS / "notebook.md": 25}
SHORT = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of: ``my_pipeline`` and ``my_images``."""
    root = tmp_path_factory.mktemp("docs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(12, 20),
            down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D"),
            attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(root / "my_pipeline")
    save_pictures(root / "my_images", 16)
    return root


def lines_of(block: Block) -> list[str]:
    return [line for line in block.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_the_pages_with_code_are_those_that_promise_it() -> None:
    assert {page.name for page in CODE} >= {"README.md", "notebook.md", "how_to.md"}


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.name)
def test_code_is_short(page: Path) -> None:
    for block in CODE[page]:
        count = len(lines_of(block))
        assert count < LONGEST.get(page, SHORT), f"{block.place}: {count} lines"


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.name)
def test_code_runs(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("circuits.head_functions._FUNCTIONS", {})
    monkeypatch.setattr("diffusers.utils.logging._tqdm_active", False)  # no bar
    namespace: dict[str, object] = {"__name__": "page"}
    for block in CODE[page]:
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, namespace)
    if page.name == "notebook.md":
        assert {file.name for file in place.glob("*.png")} == {"effects.png", "heatmap.png", "entropy.png"}
        table = namespace["table"]
        assert len(table) == 3 * 2 * 6  # heads, windows, metrics
        assert set(table["verdict"]) == {"degraded", "negligible"}


def test_notebooks_need_no_sweep() -> None:
    """What the pages import is the library, and what it stands on."""
    wanted = {line.split()[1].partition(".")[0] for found in CODE.values() for block in found
              for line in block.text.splitlines() if line.startswith(("from ", "import "))}  # fmt: skip
    assert wanted <= {"circuits", "diffusers", "torch", "numpy", "pandas", "matplotlib"}
    assert all(importlib.util.find_spec(name) for name in wanted)
    assert "circuits" in sys.modules
