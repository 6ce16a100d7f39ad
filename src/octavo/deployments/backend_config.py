"""What `--backend-config` says, as Triton has it."""

import re
from collections.abc import Mapping, Sequence

from octavo.errors import ConfigError

NAME = "backend_config"

MAX_BATCH_SIZE = 2**20

_WRITTEN = re.compile(r"(?:([^,=]+),)?([^,=]+)=(.*)")

_BATCH_SIZE = "default-max-batch-size"

_OF_PYTHON = frozenset(
    (
        "shm-default-byte-size",
        "shm-growth-byte-size",
        "shm-region-prefix-name",
        "stub-timeout-seconds",
        "thread-pool-size",
    )
)
"""Of the shared memory and the threads of Triton's own processes: there is nothing here that they could be about."""


def default_batch_sizes(written: Sequence[str]) -> Mapping[str, int]:
    """`max_batch_size` of models whose configurations do not say it, by backend; of the others under "".

    Args:
        written: as BACKEND,SETTING=VALUE or SETTING=VALUE.

    Raises:
        ConfigError: it asks for something else.
    """
    found: dict[str, int] = {}
    for each in written:
        match = _WRITTEN.fullmatch(each)
        if match is None:
            raise ConfigError(f"{NAME} is {each!r:.80}, but must be BACKEND,SETTING=VALUE or SETTING=VALUE", NAME)
        backend, name, value = match.groups(default="")
        if name == _BATCH_SIZE:
            if not value.isdecimal() or not 1 <= int(value) <= MAX_BATCH_SIZE:
                wanted = f"a whole number from 1 to {MAX_BATCH_SIZE:,}"
                raise ConfigError(f"{NAME} has {name} {value!r:.80}, but that must be {wanted}", NAME)
            found[backend] = int(value)
        elif backend != "python" or name not in _OF_PYTHON:
            raise ConfigError(
                f"{NAME} asks for {each!r:.80}, which is not done; {_BATCH_SIZE} can be set, and what is about a model "
                "belongs into its configuration",
                NAME,
            )
    return found
