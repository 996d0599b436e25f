"""``--help``: the groups with their options and every key with its comment, read from the files they stand in."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from sweeps.config import CHOICES, LISTS
from sweeps.groups import EXPERIMENT, options
from sweeps.settings import Setting, settings

_WIDTH, _COLUMN = 120, 40

_HEAD = """\
Which attention heads, layers and timesteps of a diffusion model do what: ablate, measure, test, report.

Usage: {program} [sweep=NAME] [model=NAME] [data=NAME] [mode=MODE] [key=value ...] [flags]

Examples:
  {program}                                    the default sweep
  {program} mode=plan                          the grid and its cost; measures nothing
  {program} sweep=smoke model=tiny_unet sweep.heads=0-3 'sweep.modes=[zero,mean]'
  {program} +experiment=windows                settings of several groups under one name
  {program} --multirun sweep=smoke model=tiny_faces,tiny_unet sweep.seed=0,1
  {program} --config-dir mine model=my_model   groups of your own: mine/model/my_model.yaml

Flags:
  --help                    this page; with settings (--help sweep=paper), the values that they give
  --cfg job                 the composed configuration, as YAML; --resolve fills in references, -p sweep shows a part
  -m, --multirun            a job for each combination of comma-separated values
  -cd, --config-dir DIR     more groups, from your own folder
  -sc install=bash          tab completion: eval "$({program} -sc install=bash)"; likewise fish
  --hydra-help              flags of Hydra itself
"""

_FOOT = """\
Exit codes: 0 every trial is recorded; 1 this machine gave out, resumable; 2 bad input, before any work; 3 some trials
failed for good, the rest is reported; 130 interrupted, resumable. The same command again goes on where it stopped.
"""


def explained(values: dict[str, Any], program: str, own: Path | None = None) -> str:
    """The page; ``values`` is the composed configuration, and ``own`` the user's folder of settings."""
    return "\n".join([_HEAD.format(program=program), *_groups(values, own), *_keys(values), _FOOT])


def _groups(values: dict[str, Any], own: Path | None) -> Iterator[str]:
    yield "Groups (group=NAME; * is chosen, + is from your folder):"
    for group, found in options(own).items():
        yield f"\n  {'+' if group == EXPERIMENT else ''}{group}"
        chosen = values.get(group, {}).get("name")
        for option in found:
            mark = "*" if option.name == chosen else "+" if option.own else " "
            yield _entry(f"{mark} {option.name}", option.about)
    yield ""


def _keys(values: dict[str, Any]) -> Iterator[str]:
    yield "Keys (key=value; the values shown are those of this command line):"
    for setting in settings():
        if setting.is_group:
            yield f"\n  {setting.key}: {setting.about}"
            continue
        yield from _key(setting, values)
        if setting.listed and dataclasses.is_dataclass(setting.kind):
            for index in range(len(_value(values, setting.key))):
                for inner in settings(cast(type, setting.kind), f"{setting.key}.{index}."):
                    yield from _key(inner, values)
    yield ""


def _key(setting: Setting, values: dict[str, Any]) -> Iterator[str]:
    value = _value(values, setting.key)
    shown = (
        f" ({len(value)})" if isinstance(value, list) and value and isinstance(value[0], dict) else f"={_yaml(value)}"
    )
    valid = CHOICES.get(setting.key) or LISTS.get(setting.key) or ()
    unsaid = not all(re.search(rf"\b{re.escape(choice)}\b", setting.about) for choice in valid)
    yield _entry(f"{setting.key}{shown}", setting.about + (f"; valid: {', '.join(valid)}" if unsaid else ""))


def _value(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None below what is null."""
    found: Any = values
    for name in key.split("."):
        found = found[int(name)] if isinstance(found, list) else (found or {}).get(name)
    return found


def _yaml(value: Any) -> str:
    """As it is written on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_yaml, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _entry(term: str, about: str) -> str:
    """A term, and what it means in the column beside it; below it where the term is long."""
    lines = textwrap.wrap(about, _WIDTH - _COLUMN) or [""]
    first = f"    {term}".ljust(_COLUMN - 1)
    if len(first) >= _COLUMN:
        return "\n".join([first, *(" " * _COLUMN + line for line in lines)]).rstrip()
    return "\n".join([f"{first} {lines[0]}", *(" " * _COLUMN + line for line in lines[1:])]).rstrip()
