"""Parts of the protocol that only clients with a certain header may use, as Triton's flags say it:
`--http-restricted-api` and `--grpc-restricted-protocol`."""

import hmac
import re
from collections.abc import Mapping, Sequence

from octavo.errors import ConfigError
from octavo.settings import one_of

APIS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)

_WRITTEN = re.compile(r"([^:]+):([^=]+)=(.+)")


class Restrictions:
    """Which header each part of the protocol wants.

    Args:
        written: as API,…:HEADER=VALUE. name: of the setting. prefix: of the headers' names.

    Raises:
        ConfigError: something else is written.
    """

    def __init__(self, written: Sequence[str], name: str, prefix: str = "") -> None:
        self._wanted: dict[str, tuple[str, bytes]] = {}
        for each in written:
            match = _WRITTEN.fullmatch(each.strip())
            if match is None:
                raise ConfigError(
                    f"{name} must be parts of the protocol, a header and its value, as in "
                    "model-repository,statistics:admin-key=SECRET",
                    name,
                )
            for api in match[1].split(","):
                if api not in APIS:
                    raise ConfigError(f"{name} has {api!r}; there are {one_of(APIS)}", name)
                if api in self._wanted:
                    raise ConfigError(f"{name} has {api} twice; one header opens it", name)
                self._wanted[api] = (f"{prefix}{match[2]}", match[3].encode())

    def missing(self, api: str, headers: Mapping[bytes, bytes]) -> str | None:
        """The header that a request lacks, or has with another value; None if it may."""
        if api not in self._wanted:
            return None
        header, value = self._wanted[api]
        sent = headers.get(header.lower().encode(), b"")
        return None if hmac.compare_digest(sent, value) else header
