"""Overrides as they are pasted into a shell: quoted for Hydra, and around that for the shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_NO_TEXT = ("null", "true", "false", "nan", "inf")


def pasted(values: Mapping[str, str]) -> str:
    """Overrides by key, in their order."""
    return " ".join(_override(key, value) for key, value in values.items())


def _override(key: str, value: str) -> str:
    if re.fullmatch(r"[a-z/][\w./:@%+-]*", value, re.ASCII | re.IGNORECASE) and value.lower() not in _NO_TEXT:
        return f"{key}={value}"
    # In Hydra's quotes a backslash is one, but before a quote, where two are.
    hydras = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    given = f"{key}='{hydras}'"
    return shlex.quote(given) if re.search(r"[\"$`\\!]", given) else f'"{given}"'
