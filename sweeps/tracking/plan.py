"""The planned trials as W&B shows them: their names, their W&B runs, and which of them share one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeps.phases import COMPARED
from sweeps.seals import read_parquet, yaml_value

Axes = Mapping[str, Any]
Key = tuple[Any, ...]
GROUP_AXES = ("layer", "layer_index", "window_index", "t_start", "t_end")
LINE_AXES = (
    "model", "dataset", "protocol", "level", "layer", "layer_index", "head", "stream", "mode", "strength", "factor",
)  # fmt: skip
"""What trials on one line over the diffusion process share; they differ by their window."""


@dataclass(frozen=True)
class Plan:
    """The planned trials of a run directory, in order, by id."""

    run_dir: Path
    config: Mapping[str, Any]
    trials: Mapping[str, Axes]

    @classmethod
    def read(cls, run_dir: Path) -> Plan:
        config = yaml_value((run_dir / "config.yaml").read_bytes()) or {}
        rows = read_parquet(run_dir / "trials.parquet").to_pylist()
        return cls(run_dir, config, {row["trial_id"]: row for row in rows})

    @property
    def name(self) -> str:
        return str(self.setting("run", "name") or self.run_dir.name)

    @property
    def sweep_id(self) -> str:
        """The name as it can stand in any filter."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:12]

    @property
    def metric(self) -> str:
        """The registered metric."""
        return str(self.setting("stats", "metric") or "noise_mse")

    def setting(self, group: str, key: str) -> Any:
        settings = self.config.get(group)
        return settings.get(key) if isinstance(settings, Mapping) else None

    @cached_property
    def groups(self) -> dict[Key, list[str]]:
        """Trials per layer and window, and the controls of each apart."""
        groups: dict[Key, list[str]] = {}
        for trial, axes in self.trials.items():
            groups.setdefault(group_of(axes), []).append(trial)
        return groups

    @cached_property
    def lines(self) -> dict[Key, list[str]]:
        """Trials of the same head (or layer, block, stage), mode and data set, from the last timesteps to the first."""
        lines: dict[Key, list[str]] = {}
        for trial, axes in self.trials.items():
            if axes.get("layer") and axes.get("t_end") is not None and not is_control(axes):
                lines.setdefault(tuple(axes.get(key) for key in LINE_AXES), []).append(trial)
        for trials in lines.values():
            trials.sort(key=lambda trial: timestep(self.trials[trial]))
        return lines

    def trial_id(self, trial: str) -> str:
        axes = self.trials[trial]
        window_index = f"w{axes.get('window_index')}"
        return self.run_id("trial", trial, where(axes), window_index, axes.get("mode"), axes.get("dataset"))

    def group_id(self, key: Key) -> str:
        return self.run_id("group", key, f"L{key[1]}", f"w{key[2]}", *key[5:])

    def summary_id(self) -> str:
        """First by name: so `wandb leet` lists the runs of one second, of which the newest come first."""
        return self.run_id("all", None, "summary")

    def run_id(self, kind: str, key: Any, *readable: Any) -> str:
        """The same for the same run name and key, anywhere, for ever: uploading twice overwrites.

        `readable` is for the viewers that list runs by their folders, such as `wandb leet`.
        """
        words = [re.sub(r"[^A-Za-z0-9.]+", "_", str(word))[:20] for word in readable if word not in (None, "")]
        digest = hashlib.sha256(json.dumps([self.name, kind, key]).encode()).hexdigest()[:16]
        return "-".join([kind, *words, digest])


def group_of(axes: Axes) -> Key:
    """Trials shown together; controls are no ablations, so they stay among themselves."""
    place = tuple(axes.get(key) for key in GROUP_AXES)
    return (*place, "control") if is_control(axes) else place


def is_control(axes: Axes) -> bool:
    """What is measured to be compared: random subspaces, the unablated model once more, sets of heads."""
    return axes.get("phase") in COMPARED


def trial_name(axes: Axes) -> str:
    """For people: `mid.attn h3 zero t800-600 lfw_faces denoise`; of a control `mid.attn subspace 5 t800-600 ...`."""
    parts = [_place(axes), ablation(axes), window(axes)]
    if axes.get("phase") == "control":
        layer = str(axes.get("layer"))
        parts[:2] = [layer, f"subspace {axes.get('draw')}"] if axes.get("strength") else [layer, "unablated again"]
    return _joined(*parts, axes.get("dataset"), axes.get("protocol"))


def line_name(axes: Axes) -> str:
    """A trial's name without its window."""
    return _joined(_place(axes), ablation(axes), axes.get("dataset"), axes.get("protocol"))


def _joined(*parts: Any) -> str:
    return " ".join(str(part) for part in parts if part)[:128]


def _place(axes: Axes) -> str:
    place = axes.get("layer") or "+".join(map(str, axes.get("sites") or [])) or str(axes.get("level"))
    head = axes.get("head")
    return f"{place} h{head}" if head is not None and head >= 0 else str(place)


def where(axes: Axes) -> str:
    """Short: `L2H3`, `L2` for a whole layer, `set` for heads of several."""
    index, head = axes.get("layer_index"), axes.get("head")
    if index is None or index < 0:
        return "set"
    return f"L{index}H{head}" if head is not None and head >= 0 else f"L{index}"


def ablation(axes: Axes) -> str:
    """The mode; of `scale` with its factor, without which it says nothing."""
    return f"scale x{axes.get('factor'):g}" if axes.get("mode") == "scale" else str(axes.get("mode"))


def window(axes: Axes) -> str:
    return f"t{axes.get('t_start')}-{axes.get('t_end')}"


def timestep(axes: Axes) -> float:
    """The middle of the window: the x axis on which trials of the same head line up, window after window."""
    return (axes["t_start"] + axes["t_end"]) / 2


def shown_axes(plan: Plan, axes: Axes) -> dict[str, Any]:
    """Config of a run: flat, typed, nothing empty, so that every key can be grouped, filtered and sorted by."""
    shown = {key: value for key, value in axes.items() if value not in (None, "") and key != "sites"}
    if not axes.get("layer") and axes.get("sites"):
        shown["sites"] = "+".join(map(str, axes["sites"]))
    shown |= {"sweep": plan.name, "sweep_id": plan.sweep_id, "where": where(axes)}
    if axes.get("mode"):
        shown["ablation"] = ablation(axes)
    if axes.get("t_end") is not None:
        shown["window"] = window(axes)
    return shown


def shown_tags(*values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value)[:64] for value in values if value))
