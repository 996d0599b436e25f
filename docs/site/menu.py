"""A hook of mkdocs: pages that mkdocs.yml does not place are in the menu all the same, under "More"."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    folder = Path(config["docs_dir"])
    placed = set(_pages(config["nav"]))
    every = {page.relative_to(folder).as_posix() for page in folder.rglob("*.md") if "site" not in page.parts}
    if every - placed:
        config["nav"].append({"More": sorted(every - placed)})
    return config


def _pages(entry: Any) -> list[str]:
    """Every page of a menu, whatever the depth."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in _pages(part)]
