"""For every test: one thread a process. The models are tiny, and the suite runs in several processes already."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and in the processes that tests start
