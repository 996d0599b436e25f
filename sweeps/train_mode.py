"""``mode=train``: the project's own models, trained here, and where their weights are then found."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from circuits.shipped import TRAINABLE, train_new
from circuits.training import TrainingProgress
from sweeps.config import Config, ConfigError, ModelConfig
from sweeps.progress import say
from sweeps.schedule.clusters import resolve_device


def train_model(config: Config) -> int:
    """``mode=train``: train one of the project's own models; goes on where it stopped."""
    if config.model.name not in TRAINABLE or config.model.training is None:
        raise ConfigError(
            f"mode=train trains the project's own models, not model={config.model.name}; valid: {', '.join(TRAINABLE)}"
        )
    folder = Path(config.model.training.folder or training_folder(config.model.name))
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=config.model.training.steps)

        def show(at: TrainingProgress) -> None:
            bar.update(task, completed=at.step, description=f"loss {at.loss:.4f}, {at.seconds_per_step:.2f} s a step")

        device = resolve_device(config.cluster.device)
        exported = train_new(config.model.name, config.model.training, folder, show, device)
    found = str(exported) == config.model.path  # else the name means other weights
    chosen = f"model={config.model.name}" if found else f"model=hub model.path={exported}"
    say(Console(), f"{exported}: sweep it with {chosen}")
    return 0


def training_folder(name: str) -> Path:
    """Where ``mode=train`` keeps its state by default, and leaves the trained model in a folder of its name."""
    return Path("training") / name


def check_trained(model: ModelConfig) -> None:
    """
    Raises:
        ConfigError: the weights are those that ``mode=train`` leaves behind, and it did not run yet.
    """
    name, path = model.name, Path(model.path)
    if name in TRAINABLE and path == training_folder(name) / name and not path.is_dir():
        raise ConfigError(
            f"model.path: no folder {model.path!r}; the weights of {name} do not ship: mode=train model={name} trains "
            "them and leaves them there, or give the folder of others"
        )
