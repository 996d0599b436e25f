"""Workers that things befall: each of them once, in the order of ``FAULTS``, a lease each."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from sweeps.leases import Lease
from sweeps.run import LeaseOutcome, Runner
from sweeps.schedule.remote import RemoteRunner

FAULTS = ("hangs", "killed", "preempted", "device lost")
FOLDER = "FAULTY_FOLDER"


class _Preempted(Runner):
    """Told during its next lease that its machine is about to go."""

    def __init__(self, runner: Runner) -> None:
        self.__dict__ = runner.__dict__

    def run(self, lease: Lease) -> LeaseOutcome:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().run(lease)


class FaultyRunner(RemoteRunner):
    """The next fault befalls the next lease after the first one, in whichever process; its second try is undisturbed,
    and so are the last leases."""

    def run(self, lease: Lease) -> LeaseOutcome:
        folder = Path(os.environ[FOLDER])
        begun = folder / lease.lease_id
        left = () if begun.exists() else ("nothing yet", *FAULTS)
        begun.touch()
        fault = next((f for f in left if not (folder / f).exists()), None)
        if fault is not None:
            (folder / fault).touch()
        if fault == "hangs":
            time.sleep(1000)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "device lost":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if fault == "preempted":
            self._runner = _Preempted(self._runner)
        return super().run(lease)
