"""Who may ask: API keys, where they are read, and what each of them may."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from octavo.errors import ConfigError
from octavo.settings import Kind, from_table, require_known, resolve, setting, settings_of

INT32 = 2**31


class PriorityRange(NamedTuple):
    """The priorities that a client may give its requests. Lower numbers run first."""

    lowest: int
    highest: int

    def __str__(self) -> str:
        return f"{self.lowest}:{self.highest}"


def _read_priorities(raw: object) -> PriorityRange:
    if isinstance(raw, str):
        match = re.fullmatch(r"\s*([+-]?\d+)\s*:\s*([+-]?\d+)\s*", raw)
        if match is None:
            raise ValueError
        raw = [int(match[1]), int(match[2])]
    if not isinstance(raw, list | tuple) or [type(bound) for bound in raw] != [int, int]:
        raise TypeError
    lowest, highest = raw
    if not -INT32 <= lowest <= highest < INT32:
        raise ValueError
    return PriorityRange(lowest, highest)


PRIORITIES = Kind(
    "two whole numbers of 32 bits, the lower first, such as 0:100 (in a file [0, 100])", "A:B", _read_priorities
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key.

    Attributes:
        key: what clients send.
        name: whose it is, if the operator has named it; keys of one name share one fair share.
        priorities: what it may ask for; None is the server's range.
    """

    key: str = field(repr=False)
    name: str = ""
    priorities: PriorityRange | None = None

    @property
    def tenant(self) -> str:
        """Whom its requests are counted for: never the key itself, which must not get into logs."""
        return self.name or hashlib.sha256(self.key.encode()).hexdigest()[:16]


class Keyring:
    """Keys that open something; without any, nothing is locked."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(hashlib.sha256(key.key.encode()).digest(), key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, authorization: bytes, api_key: bytes) -> ApiKey | None:
        """The key that a request comes with. Compares with every key, in constant time.

        Args:
            authorization, api_key: its header fields `authorization` and `x-api-key`; empty without.
        """
        scheme, _, token = authorization.partition(b" ")
        sent = token.strip() if scheme.lower() == b"bearer" else api_key.strip()
        digest = hashlib.sha256(sent).digest()
        matches = [key for known, key in self._keys if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """A named key, as a file describes it in the table [server.keys.NAME]."""

    key: str | None = setting(None, help="What clients send.", secret=True, without="see key_file")
    key_file: str | None = setting(None, help="A file with keys, one a line.", without="none")
    priorities: PriorityRange | None = setting(
        None, help="The priorities that it may ask for.", kind=PRIORITIES, without="the server's"
    )


def read_named_keys(tables: Mapping[str, object], where: str) -> tuple[ApiKey, ...]:
    """The keys of a file's tables, by name. Raises ConfigError."""
    if not tables:
        raise ConfigError(f"{where.rstrip('.')} has no key; give one as [server.keys.NAME], or leave it out")
    keys: list[ApiKey] = []
    for name, table in tables.items():
        place = f"{where}{name}."
        if not isinstance(table, dict):
            raise ConfigError(f"{where}{name} must be a table with key or key_file")
        known = settings_of(KeySettings)
        require_known(table, known, place)
        values = resolve(known.values(), from_table(table, place))
        settings: KeySettings = values.build(KeySettings)
        own = [] if settings.key is None else clean_keys([settings.key], place + "key")
        if settings.key_file is not None:
            own += read_key_file(settings.key_file, place + "key_file")
        if not own:
            raise ConfigError(f"{where}{name} has no key; give it key or key_file")
        keys += [ApiKey(key=key, name=name, priorities=settings.priorities) for key in own]
    return tuple(keys)


def read_key_file(path: str, name: str) -> list[str]:
    """The keys of a file: one a line, without blank lines and comments.

    Args:
        name: the setting that names the file, for errors.

    Raises:
        ConfigError: the file cannot be read, has no key, or one that no client could send.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ConfigError(f"cannot read keys from {path}: {reason}", name) from None
    lines = (line.strip() for line in text.splitlines())
    keys = clean_keys([line for line in lines if line and not line.startswith("#")], name)
    if not keys:
        raise ConfigError(f"{path} has no key; write one a line", name)
    return keys


def clean_keys(keys: Iterable[str], name: str) -> list[str]:
    """Keys as they arrive in a header: without space around them. Raises ConfigError: one that no client could send."""
    cleaned = [key.strip() for key in keys]
    if any(not key or not key.isprintable() for key in cleaned):
        raise ConfigError("a key must have at least one character, and none that cannot be printed", name)
    return cleaned
