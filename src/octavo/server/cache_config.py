"""Triton's `--cache-config`: which cache keeps answers, and how."""

from collections.abc import Sequence

from octavo.engine.config import memory_total
from octavo.errors import ConfigError
from octavo.hosting.response_cache import LEAST_BYTES
from octavo.settings import QUANTITY, shown

NAME = "cache_config"

LOCAL, SIZE = "local", "size"
"""The one cache that there is, and its one setting."""

_FORM = "the option's format is <cache>,<setting>=<value>, as in local,size=64MiB"


def read_cache_config(written: Sequence[str]) -> int:
    """The bytes of the cache that is asked for; 0 for none.

    Args:
        written: "local,size=1048576", or several of that form. A list that was taken apart at its commas is one, too.

    Raises:
        ConfigError: there is no such cache or setting, or it cannot be of this size.
    """
    cache, size = "", None
    for word in ",".join(written).split(",") if written else ():
        setting, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            cache = setting
            if cache != LOCAL:
                raise _wrong(f"names the cache {shown(cache)}, which is not supported; use {LOCAL}: {_FORM}")
        elif not cache:
            raise _wrong(f"has {shown(word)} without the name of a cache; {_FORM}")
        elif setting != SIZE:
            raise _wrong(f"has {shown(setting)}, which the cache {cache} does not know; use {SIZE}: {_FORM}")
        else:
            size = _read_size(value)
    if cache and size is None:
        raise _wrong(f"has no {SIZE} for the cache {cache}; {_FORM}")
    return 0 if size is None else checked_size(size, NAME)


def checked_size(size: int, name: str) -> int:
    """A size that a cache can have, or 0 for none. Raises ConfigError with the name of the setting."""
    if size and size < LEAST_BYTES:
        raise ConfigError(f"{name}: a cache of {size} bytes is too small; give at least {LEAST_BYTES}, or 0", name)
    there = memory_total()
    if size > there:
        raise ConfigError(f"{name}: a cache of {size} bytes is too large: the machine has {there}", name)
    return size


def _read_size(value: str) -> int:
    try:
        size: int = QUANTITY.read(value)
    except ValueError:
        size = -1
    if size < 0:
        raise _wrong(f"has the {SIZE} {shown(value)}, which must be {QUANTITY.words}")
    return size


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"{NAME} {what}", NAME)
