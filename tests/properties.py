"""How many examples a property is tried on: the same ones at every run, or further ones in `make fuzz`."""

import os
from typing import Any

from hypothesis import settings

FUZZ_FACTOR = int(os.environ.get("OCTAVO_FUZZ", "0"))
"""What `make fuzz` multiplies the number of examples by; 0 in an ordinary run."""

USUAL = 50
"""Examples of a property that does not say how many. At every run they are the same, so that more of them would find
nothing new: that is what `make fuzz` is for."""


def use_profile() -> None:
    """Load the profile of this run. Machines that run tests are busy ones: no example has a deadline."""
    settings.register_profile("fixed", max_examples=USUAL, derandomize=True, database=None, deadline=None)
    settings.register_profile("fuzz", max_examples=USUAL * max(FUZZ_FACTOR, 1), database=None, deadline=None)
    settings.load_profile("fuzz" if FUZZ_FACTOR else "fixed")


def examples(count: int, **options: Any) -> settings:
    """Settings for a property that is tried on `count` examples instead of the usual number."""
    return settings(max_examples=count * max(FUZZ_FACTOR, 1), **options)
