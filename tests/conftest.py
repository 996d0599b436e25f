"""For every test: one thread a process. The models are tiny, and the suite runs in several processes already."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and in the processes that tests start
# Ray lets everything else go first, so that its workers would stand still beside tests that run on all cores.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (its name)
