"""The groups of the configuration and what each offers: the files under conf/, and under the user's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.composition import config_folder

EXPERIMENT = "experiment"
"""The group that is added (``+experiment=NAME``): settings of any other group, under one name."""


@dataclass(frozen=True)
class Option:
    """One choice of a group.

    Attributes:
        about: the comment at the top of its file.
        own: it lies in the user's folder (``--config-dir``).
    """

    group: str
    name: str
    about: str
    file: Path
    own: bool = False


def options(own: Path | None = None) -> dict[str, list[Option]]:
    """The options of every group, those that ship first; a group is a folder with YAML files in it."""
    found: dict[str, list[Option]] = {}
    for folder in (config_folder(), *([own] if own else [])):
        for file in sorted(folder.glob("*/**/*.yaml")):
            group, *rest = file.relative_to(folder).with_suffix("").parts
            option = Option(group, "/".join(rest), _about(file), file, own=folder is own)
            found.setdefault(group, []).append(option)
    return found


def names(group: str, own: Path | None = None) -> list[str]:
    """What a group can be set to, the user's own first."""
    return [option.name for option in sorted(options(own).get(group, []), key=lambda option: not option.own)]


def clash(own: Path) -> Option | None:
    """An option of the user's folder that has the name of one that ships, which would be used in its place."""
    shipped = options()
    for group, found in options(own).items():
        taken = {option.name for option in shipped.get(group, [])}
        for option in found:
            if option.own and option.name in taken:
                return option
    return None


def _about(file: Path) -> str:
    """The comment that a file begins with, as one line; empty where it cannot be read."""
    try:
        lines: Sequence[str] = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    said = []
    for line in lines:
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        said.append(line.lstrip("# ").strip())
    return " ".join(said)
