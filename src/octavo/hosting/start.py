"""What a hosted model's process is started with."""

import msgspec

from octavo.hosting.config import HostingConfig


class HostingStart(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and its name.

    Attributes:
        number: of the process among those of the model, counted from 1.
        rate_limiter: where that listens; empty if there is none.
    """

    name: str
    config: HostingConfig
    number: int = 1
    rate_limiter: str = ""
