"""Processes that tests look for, while others come and go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psutil


def children(of: psutil.Process, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """At any depth; one that ends while it is looked at is not there."""
    found = []
    for child in of.children(recursive=True):
        with suppress(psutil.Error):
            if wanted(child):
                found.append(child)
    return found


def runners(of: psutil.Process) -> list[psutil.Process]:
    """Ray's workers of a sweep, which are named after their class."""
    return children(of, lambda process: any("RemoteRunner" in part for part in process.cmdline()))
