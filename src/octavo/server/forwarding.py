"""Headers of requests that models get as parameters, as Triton's flags say it: `--http-header-forward-pattern` and
`--grpc-header-forward-pattern`."""

import re
from collections.abc import Iterable

from octavo.errors import ConfigError


def header_pattern(written: str | None, name: str) -> re.Pattern[str] | None:
    """A pattern for the names of headers, in which there are no capitals; None for none.

    Args:
        name: of the setting.

    Raises:
        ConfigError: it is no regular expression.
    """
    try:
        return None if written is None else re.compile(written, re.IGNORECASE | re.ASCII)
    except re.error as error:
        raise ConfigError(f"{name} is {written!r:.80}, which is no regular expression: {error}", name) from None


def forwarded(pattern: re.Pattern[str], headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers whose names a pattern is found in."""
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if not name.startswith(b":")}
    return {name: value for name, value in found.items() if pattern.search(name)}
