"""The page of errors says what the program prints: every command on it is given, every line compared."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import circuits
import launch
from tests.docs.pages import DOCS, blocks
from tests.sweeps.tiny import save_pictures

PAGE = DOCS / "errors.md"
SHOWN = [(block, block.text.splitlines()) for block in blocks(PAGE, "")]
CONSOLE = [block.text.splitlines() for block in blocks(PAGE, "python-console")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page speaks of: a pipeline, images, a pickled checkpoint, and a run called ``faces``."""
    root = tmp_path_factory.mktemp("errors")
    network = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4,),
        down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",), attention_head_dim=4,
        norm_num_groups=4,
    )  # fmt: skip
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(root / "my_pipeline")
    save_pictures(root / "my_images", 4)
    (root / "pickled" / "unet").mkdir(parents=True)
    (root / "pickled" / "unet" / "config.json").write_text("{}")
    (root / "pickled" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    run = root / "runs" / "faces"
    for folder in ("records", "samples"):
        (run / folder).mkdir(parents=True)
    (run / "run.json").write_text('{"schema_version": 1, "plan": "0123456789abcdef"}')
    pd.DataFrame({"trial_id": []}).to_parquet(run / "trials.parquet")
    return root


@pytest.fixture
def said(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """Exit code and standard error of a command line; no sweep can start."""

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("work was started")

    def run(line: str) -> tuple[int, str]:
        monkeypatch.chdir(place)
        for start in ("sweeps.driver.measure", "sweeps.driver.explore"):
            monkeypatch.setattr(start, nothing)
        words = shlex.split(line)
        assert words[:2] == ["python", "launch.py"]
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in line.split("…")))


def test_every_block_is_a_command_and_its_error() -> None:
    assert len(SHOWN) >= 20
    for _, (command, error) in SHOWN:
        assert command.startswith("$ python launch.py ")
        assert error.startswith("error: ")


@pytest.mark.parametrize("lines", [lines for _, lines in SHOWN], ids=[lines[0][19:70] for _, lines in SHOWN])
def test_the_program_says_so(lines: list[str], said: Callable[..., tuple[int, str]], place: Path) -> None:
    if "cluster.device=cuda" in lines[0] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so cuda is right here")
    before = sorted(place.rglob("*"))
    code, error = said(lines[0][2:])
    assert code == 2
    assert pattern(lines[1] + "\n").fullmatch(error), error
    assert sorted(path for path in place.rglob("*") if path.name != "run.lock") == before


def test_notebooks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.head_functions._FUNCTIONS", {})
    denoiser = circuits.load_denoiser("tiny_faces")
    spec = circuits.SourceSpec("natural", "lfw_faces", label=1)
    namespace = {name: getattr(circuits, name) for name in circuits.__all__}
    namespace |= {
        "denoiser": denoiser,
        "faces": circuits.data_set_for(denoiser, spec, images=4),
        "heads": [circuits.Intervention("zero", (circuits.Site("transformer_blocks.3.attn1", 0),))],
    }
    (lines,) = CONSOLE
    assert len(lines) == 10
    for code, expected in zip(lines[::2], lines[1::2], strict=True):
        with pytest.raises(ValueError, match=r".") as raised:
            exec(code.removeprefix(">>> "), namespace)
        assert pattern(expected).fullmatch(f"{type(raised.value).__name__}: {raised.value}"), str(raised.value)


def test_the_exit_codes_are_those_of_the_program() -> None:
    text = PAGE.read_text()
    named = {int(code) for code in re.findall(r"\*\*Exit code (\d+)\*\*", text)} | {launch.BAD_INPUT}
    assert named == {launch.GAVE_OUT, launch.BAD_INPUT, launch.FAILED_TRIALS, launch.INTERRUPTED}
