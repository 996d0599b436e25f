"""Seconds that the parts of a run took, for run.json: what a later plan is estimated from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sweeps.records import RunDirectory

LOADING = "loading"
"""The model and the data sets, by the driver. Other parts are called as the state of the run that they take;"""

STARTING = "starting"
"""and this one goes from the start of measuring to the first lease: Ray, and workers that load the model."""


class Timings:
    """Adds up seconds by part. Of a resumed run, those of its earlier drivers count too, once they are merged in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside belongs to this part."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - began)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def merge_into(self, directory: RunDirectory) -> None:
        """Add them to those in run.json, and begin again at nothing."""
        merged: dict[str, Any] = dict(directory.read_run().get("timings", {}))
        for name, seconds in self.seconds.items():
            merged[name] = round(float(merged.get(name, 0.0)) + seconds, 2)
        directory.write_run({"timings": merged})
        self.seconds = {}
