"""Workers that things befall: each of them once, in the order of ``FAULTS``, a lease each."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from sweeps.leases import Lease
from sweeps.run import LeaseOutcome
from sweeps.schedule.remote import RemoteRunner

FAULTS = ("hangs", "killed", "preempted", "device lost")
FOLDER = "FAULTY_FOLDER"


class FaultyRunner(RemoteRunner):
    """The next fault befalls a lease after the first one, in whichever process; the last leases are undisturbed."""

    def run(self, lease: Lease) -> LeaseOutcome:
        folder = Path(os.environ[FOLDER])
        fault = next((f for f in ("nothing yet", *FAULTS) if not (folder / f).exists()), None)
        if fault is not None:
            (folder / fault).touch()
        if fault == "hangs":
            time.sleep(1000)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "device lost":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if fault == "preempted":
            with self._drain:
                os.kill(os.getpid(), signal.SIGTERM)
                return self._runner.run(lease)
        return super().run(lease)
