"""What a hosted model's process is started with."""

import msgspec

from octavo.hosting.config import HostingConfig


class HostingStart(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and its name."""

    name: str
    config: HostingConfig
