"""``mode=train``: the paper's model from its recipe to a sweep, at a fraction of its width; and what is said before."""

from functools import partial
from pathlib import Path

import pytest

from circuits import shipped
from circuits.checkpoints import ModelError
from circuits.shipped import new_paper_262m
from sweeps.config import ConfigError
from sweeps.driver import load
from sweeps.train_mode import train_model
from tests.sweeps.tiny import composed

FEW = ("data.sets=[{name:synthetic,source:synthetic_faces,label:0}]", "sweep.images=2", "cluster=inline")


def test_the_papers_model_is_trained_and_then_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(shipped._NEW, "paper_262m", partial(new_paper_262m, widths=(32, 64, 64, 64)))
    settings = ["steps=2", "batch_size=4", "synthetic_images=6", "warmup_steps=1", "save_every=1"]
    training = composed("mode=train", "model=paper_262m", *(f"model.training.{s}" for s in settings))
    assert train_model(training) == 0
    told = " ".join(capsys.readouterr().out.split())  # as wide as the terminal
    assert told == "training/paper_262m/paper_262m: sweep it with model=paper_262m"
    subject, _ = load(composed("model=paper_262m", *FEW))
    assert [(layer.heads, layer.head_dim, layer.tokens) for layer in subject.layers] == [(8, 8, 256)] * 3
    assert subject.denoiser.classes == 2


def test_another_checkpoint_of_a_shipped_model_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["steps=1", "batch_size=4", "synthetic_images=4", "warmup_steps=1", "folder=training/early"]
    assert train_model(composed("mode=train", "model=tiny_faces", *(f"model.training.{s}" for s in settings))) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told == "training/early/tiny_faces: sweep it with model=hub model.path=training/early/tiny_faces"
    assert {path.name for path in (tmp_path / "training").iterdir()} == {"early"}
    chosen = ("model=hub", "model.name=early", "model.path=training/early/tiny_faces")
    subject, _ = load(composed(*chosen, *FEW))
    assert (subject.denoiser.name, len(subject.layers)) == ("early", 4)


def test_a_model_without_its_weights_says_how_to_train_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load(composed("model=paper_262m", *FEW))
    assert str(refused.value) == (
        "model.path: no folder 'training/paper_262m/paper_262m'; the weights of paper_262m do not ship: "
        "mode=train model=paper_262m trains them and leaves them there, or give the folder of others"
    )
    with pytest.raises(ModelError, match="no folder '/no/such'"):
        load(composed("model=paper_262m", "model.path=/no/such", *FEW))
