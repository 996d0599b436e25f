"""Ray as the pool knows it, played by a clock: waits take no time, and answers come when a test says."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from sweeps.schedule import pool as pools


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(eq=False)
class Answer:
    """When a call is answered, and what; an exception is raised."""

    at: float
    value: Any = None


@dataclass
class PlayedRay:
    """
    Attributes:
        killed: index of each worker that was killed, and when.
    """

    clock: Clock = field(default_factory=Clock, init=False)
    killed: list[tuple[int, float]] = field(default_factory=list, init=False)

    def play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In place of Ray, and of the time, for pools made from here on."""
        played = SimpleNamespace(wait=self._wait, get=self._get, kill=self._kill, exceptions=ray.exceptions)
        monkeypatch.setitem(sys.modules, "ray", played)
        monkeypatch.setattr(pools, "time", self.clock)

    def _wait(self, answers: list[Answer], timeout: float, num_returns: int = 1) -> tuple[list[Answer], list[Answer]]:
        first = min(answers, key=lambda answer: answer.at)
        self.clock.now = max(self.clock.now, min(first.at, self.clock.now + timeout))
        ready = [first] if first.at <= self.clock.now else []
        return ready, [answer for answer in answers if answer not in ready]

    def _get(self, answer: Answer) -> Any:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def _kill(self, handle: Any, no_restart: bool = True) -> None:
        self.killed.append((handle.index, self.clock.now))
