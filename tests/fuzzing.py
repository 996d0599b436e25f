"""How often tests of random input try: ``FUZZ_TIMES=20 make unit`` is 20 times as often, with new input each time.

As it is by default, the input is the same everywhere, so that what passed here passes in continuous integration.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


def fuzz(examples: int, *, shrink: bool = True) -> settings:
    """A decorator above ``@given``.

    Args:
        examples: of one time.
        shrink: look for a small example of what fails; not where an example takes seconds.
    """
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        print_blob=TIMES > 1,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        # Fixtures are shared by the examples of a test, which leave them as they are.
        suppress_health_check=[
            HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
    )  # fmt: skip
