"""A worker on Ray: a runner that fetches what its machine lacks, sends back its records, and drains when told to."""

from __future__ import annotations

import uuid
from dataclasses import replace

from sweeps.drain import Drain
from sweeps.leases import Lease
from sweeps.run import LeaseOutcome, Runner, RunnerSpec
from sweeps.schedule.luggage import arrived
from sweeps.travel import Luggage, take_files


class RemoteRunner:
    """As :class:`Runner`, anywhere; ``luggage`` is None on the driver's own machine."""

    def __init__(self, spec: RunnerSpec, luggage: Luggage | None = None) -> None:
        self._process = uuid.uuid4().hex
        self._drain = Drain()
        spec, self._away = arrived(spec, luggage)
        self._runner = Runner(spec)

    def ping(self) -> str:
        """That this worker is up, and as which of the processes that it becomes when it dies."""
        return self._process

    def run(self, lease: Lease) -> LeaseOutcome:
        """As :meth:`Runner.run`; the files of a lease come back with it where the run directory is not shared.

        Raises:
            Draining: SIGTERM was received.
        """
        self._drain.admit()
        outcome = self._runner.run(lease)
        files = outcome.files if self._away is None else take_files(self._away)
        return replace(outcome, files=files, last=self._drain.told)
