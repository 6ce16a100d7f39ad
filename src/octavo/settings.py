"""Settings, written once: as fields of dataclasses.

A field made by `setting` carries what is to be known of it. The command line, the environment, configuration files and
the checks of the dataclass itself are derived from these fields:

    @dataclass(frozen=True, kw_only=True)
    class ServerSettings:
        port: int = setting(8000, help="Port to listen on; 0 is any free one.", least=0, most=65535)

is `--port`, `OCTAVO_PORT`, `port = 8000` in a file's table, and `check(settings)` refuses 70000, whoever wrote it. A
value is taken from the first of the sources that has one; what is wrong with it is said with the place where it is
written.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError

PREFIX = "OCTAVO_"

_UNITS = {"": 1} | {p: 1000**i for i, p in enumerate("kmgt", 1)} | {f"{p}i": 1024**i for i, p in enumerate("kmgt", 1)}
_KEY = "octavo.setting"

# Kubernetes gives every container such a variable for each Service: one that is called "octavo" sets OCTAVO_PORT.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of values.

    Attributes:
        words: what a value must be, as in "must be a whole number".
        metavar: stands for a value in help texts.
        read: makes a value of what was written, be it text or a value of the file's own. Raises ValueError, TypeError.
    """

    words: str
    metavar: str
    read: Callable[[object], Any]


def _read_text(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip() or "\0" in raw:
        raise ValueError
    return raw


def _read_whole(raw: object) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise TypeError
    return int(raw)


def _read_number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise TypeError
    return float(raw)


def _read_switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    return {"true": True, "1": True, "false": False, "0": False}[str(raw).lower()]


def _read_level(raw: object) -> int:
    written = raw.lower() if isinstance(raw, str) else raw
    return int(_read_switch(written)) if written in ("true", "false", True, False) else _read_whole(raw)


def _read_quantity(raw: object) -> int:
    if not isinstance(raw, str):
        return _read_whole(raw)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", raw.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError
    number, unit = match[1], _UNITS[(match[2] or "").lower()]
    return int(number) * unit if number.isdigit() else int(float(number) * unit)


TEXT = Kind("some text", "TEXT", _read_text)
ANY_TEXT = Kind("text", "TEXT", str)
"""Text that may be empty."""
WHOLE = Kind("a whole number", "N", _read_whole)
NUMBER = Kind("a number", "X", _read_number)
SWITCH = Kind("true or false", "", _read_switch)
LEVEL = Kind("a whole number, or true or false", "N", _read_level)
"""A whole number, where true is 1 and false 0."""
QUANTITY = Kind("a quantity such as 4096, 8k, 512MiB or 4GiB", "N", _read_quantity)
"""A whole number, plain or with a unit: 512, 8k (8,000), 8Ki (8,192), 512MiB, 4GiB."""

TOKENS = Kind("a number of tokens such as 4096, 8k or 32Ki", "N", _read_quantity)
"""The same, of tokens."""

_KINDS: dict[Any, Kind] = {str: TEXT, int: WHOLE, float: NUMBER, bool: SWITCH}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is to be known of one setting.

    Attributes:
        name: of the field, of the key in files, and, in other spellings, of the flag and the variable.
        help: one sentence. default: when no source has a value. without: what happens then, where the default is None.
        kind: of its values. many: whether it has any number of them. optional: whether None is a value.
        least, above, most: bounds. choices: the values there are.
        aliases: further flags. secret: whether its value must not be shown.
    """

    name: str
    help: str
    default: Any
    kind: Kind
    many: bool = False
    optional: bool = False
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    without: str | None = None
    metavar: str | None = None
    secret: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags on the command line, the usual one first."""
        return (flag_of(self.name), *self.aliases)

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper()

    @property
    def words(self) -> str:
        """What a value must be."""
        if self.choices:
            return one_of(self.choices)
        match self.least, self.above, self.most:
            case None, None, None:
                return self.kind.words
            case least, None, None:
                return f"{self.kind.words} of at least {least:,}"
            case None, above, most if above is not None:
                return f"{self.kind.words} above {above:,} and at most {most:,}"
            case least, _, most:
                return f"{self.kind.words} from {least:,} to {most:,}"

    def read(self, raw: object, origin: str) -> Any:
        """The value that was written as `raw`. Raises ConfigError that names `origin`, the place where it was."""
        items = (raw if isinstance(raw, list | tuple) else (raw,)) if self.many else (raw,)
        if self.many and not items:
            raise self._wrong("", origin)
        values = []
        for item in items:
            try:
                values.append(self.kind.read(item))
            except (ValueError, TypeError, KeyError, OverflowError):
                raise self._wrong(item, origin) from None
        value = tuple(values) if self.many else values[0]
        self.check(value, origin)
        return value

    def check(self, value: Any, origin: str | None = None) -> None:
        """Refuse a value of the right type that cannot work. Raises ConfigError."""
        for item in value if self.many else (value,):
            if item is None and self.optional:
                continue
            if not self._holds(item):
                raise self._wrong(item, origin)

    def _holds(self, item: Any) -> bool:
        if self.choices:
            return item in self.choices
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, str):
            return self.kind is ANY_TEXT or bool(item.strip())
        return (
            (self.least is None or item >= self.least)
            and (self.above is None or item > self.above)
            and (self.most is None or item <= self.most)
        )

    def _wrong(self, item: object, origin: str | None) -> ConfigError:
        if isinstance(item, str) and not item.strip():
            message = f"{self.name} must not be empty"
        elif self.secret:
            message = f"{self.name} must be {self.words}"
        else:
            message = f"{self.name} is {shown(item)}, but must be {self.words}"
        return ConfigError(message if origin is None else f"{message} ({origin})", *(() if origin else (self.name,)))


def setting(
    default: Any,
    *,
    help: str,  # noqa: A002 - what everybody calls it
    kind: Kind | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    aliases: Sequence[str] = (),
    without: str | None = None,
    metavar: str | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass's field that is a setting; the arguments are `Setting`'s. `kind` follows from the annotation, which
    may be str, int, float or bool, a tuple of these, or one of these or None."""
    given = {
        "help": help,
        "kind": kind,
        "least": least,
        "above": above,
        "most": most,
        "choices": tuple(choices),
        "aliases": tuple(aliases),
        "without": without,
        "metavar": metavar,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata={_KEY: given})


def settings_of(owner: type) -> Mapping[str, Setting]:
    """The settings among a dataclass's fields, by name."""
    hints = typing.get_type_hints(owner)
    return types.MappingProxyType(
        {
            field.name: _describe(field, hints[field.name])
            for field in dataclasses.fields(owner)
            if _KEY in field.metadata
        }
    )


def _describe(field: "dataclasses.Field[Any]", hint: Any) -> Setting:
    given = dict(field.metadata[_KEY])
    arguments = typing.get_args(hint)
    optional = type(None) in arguments
    kind = given.pop("kind")
    many = kind is None and typing.get_origin(hint) is tuple
    if kind is None:
        [plain] = {argument for argument in arguments or (hint,) if argument not in (type(None), Ellipsis)}
        kind = _KINDS[plain]
    return Setting(name=field.name, default=field.default, kind=kind, many=many, optional=optional, **given)


def check(owner: Any) -> None:
    """Check every setting of a dataclass's instance by itself.

    Raises:
        ConfigError: with the setting, its value and what would work.
    """
    for name, described in settings_of(type(owner)).items():
        described.check(getattr(owner, name))


# --- where values come from -------------------------------------------------------------------------------------------

Source = Callable[[Setting], tuple[object, str] | None]
"""What is written for a setting, and where; None if nothing is."""


def from_flags(given: Mapping[str, object]) -> Source:
    """The command line: what was given, by setting. None and () are flags that were not."""

    def find(wanted: Setting) -> tuple[object, str] | None:
        raw = given.get(wanted.name)
        return None if raw is None or raw == () else (raw, wanted.flags[0])

    return find


def from_environment(environment: Mapping[str, str]) -> Source:
    """Environment variables. Settings with many values have them separated by commas; a secret is one value."""

    def find(wanted: Setting) -> tuple[object, str] | None:
        raw = environment.get(wanted.variable)
        if raw is None or (wanted.name == "port" and _SERVICE_LINK.fullmatch(raw)):
            return None
        if wanted.many and not wanted.secret:
            return [part.strip() for part in raw.split(",")], wanted.variable
        return raw, wanted.variable

    return find


def from_table(table: Mapping[str, object], where: str) -> Source:
    """A table of a file or of a request. `where` is the table's place; the keys are written with underscores."""

    def find(wanted: Setting) -> tuple[object, str] | None:
        return (table[wanted.name], f"{where}{wanted.name}") if wanted.name in table else None

    return find


@dataclass(frozen=True, slots=True)
class Value:
    """A setting's value, and where it was written; an origin of None is the default."""

    value: Any
    origin: str | None = None


class Values(dict[str, Value]):
    """Settings with their values, by name."""

    def build(self, owner: type, **others: Any) -> Any:
        """An instance of a dataclass of settings. `others` are its further fields."""
        return owner(**{name: self[name].value for name in settings_of(owner)}, **others)

    def explain(self, error: ConfigError) -> ConfigError:
        """An error about settings, with the places where they were written."""
        places = [f"{name}: {self[name].origin}" for name in error.settings if name in self and self[name].origin]
        if len(error.settings) == 1:
            places = [place.partition(": ")[2] for place in places]
        return ConfigError(f"{error} ({', '.join(places)})") if places else error


def resolve(wanted: Iterable[Setting], *sources: Source) -> Values:
    """The value of every setting, from the first source that has one.

    Raises:
        ConfigError: a value cannot work; the message says where it was written.
    """
    values = Values()
    for each in wanted:
        found = next(filter(None, (source(each) for source in sources)), None)
        values[each.name] = Value(each.default) if found is None else Value(each.read(*found), found[1])
    return values


def require_known(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse names that nothing knows. Raises ConfigError with the nearest one that is known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}{name} is unknown; {nearest(name, known)}")


def misspelt_variables(environment: Mapping[str, str], known: Iterable[Setting]) -> Iterator[tuple[str, str]]:
    """Variables of the environment that nothing reads and that look like one that something does, with that one."""
    variables = [each.variable for each in known]
    for name in environment:
        if name.startswith(PREFIX) and name not in variables:
            for match in difflib.get_close_matches(name, variables, 1, cutoff=0.9):
                yield name, match


def nearest(name: str, known: Sequence[str]) -> str:
    """What to write instead of a name that nothing knows: the one that looks like it, or else one of all."""
    matches = difflib.get_close_matches(name, known, 1)
    return f"did you mean {matches[0]}?" if matches else f"use {one_of(sorted(known))}"


# --- how things are written -------------------------------------------------------------------------------------------


def flag_of(name: str) -> str:
    """A setting's flag on the command line."""
    return "--" + name.replace("_", "-")


def one_of(words: Sequence[str]) -> str:
    """Words as a choice: a, b or c."""
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def shown(value: object) -> str:
    """A value in a message: as it was written, not too long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
