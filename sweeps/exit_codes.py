"""What a command ends with; `launch.py` says what each means."""

from __future__ import annotations

OK, GAVE_OUT, BAD_INPUT, FAILED_TRIALS, INTERRUPTED = 0, 1, 2, 3, 130
