"""Which module may know what: the science nothing of Ray, W&B and Hydra, and each of those in one place."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.sweeps.tiny import ROOT

MODULES = sorted([*ROOT.glob("circuits/**/*.py"), *ROOT.glob("sweeps/**/*.py"), ROOT / "launch.py"])
PLACES = {
    "ray": ("sweeps/schedule/", "sweeps/search.py"),
    "wandb": ("sweeps/tracking/",),
    "hydra": ("launch.py", "sweeps/composition.py"),
    "omegaconf": ("launch.py", "sweeps/composition.py", "sweeps/config.py"),
    "sweeps": ("sweeps/", "launch.py"),
}


def imported(file: Path) -> set[str]:
    """Top-level packages that a module imports, anywhere in it, by statement or by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found.update(a.value.partition(".")[0] for a in node.args if isinstance(a, ast.Constant))
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_what_it_may(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    for package in imported(file) & set(PLACES):
        assert name.startswith(PLACES[package]), f"{name} imports {package}; only {', '.join(PLACES[package])} may"


def test_the_rules_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    import ray.tune\n    from wandb import init\n    importlib.import_module('hydra.core')\n"
    )
    assert imported(file) == {"ray", "wandb", "hydra"}


def test_every_place_is_used() -> None:
    """A rule about a module that is gone would say nothing."""
    for package, places in PLACES.items():
        for place in places:
            inside = [f for f in MODULES if str(f.relative_to(ROOT)).startswith(place)]
            assert any(package in imported(f) for f in inside), f"nothing in {place} imports {package}"


def test_files_are_short() -> None:
    long = {str(f.relative_to(ROOT)): n for f in MODULES if (n := f.read_text().count(os.linesep)) > 400}
    assert long == {}
