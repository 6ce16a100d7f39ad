"""Which requests are traced, as Triton's trace extension has it: for all models, and for single ones instead."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from octavo.errors import ConfigError
from octavo.settings import one_of

OFF = "OFF"
LEVELS = ("TIMESTAMPS", "TENSORS")
"""As `octavo.hosting.trace` has them, which a supervisor need not load."""

UNLIMITED = -1
MOST = 2**31 - 1
"""Of rates, counts and frequencies; Triton takes no more."""

MODE = "triton"

SPECIFIED = ("levels", "rate", "count", "log_frequency")


class TraceSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for some models.

    Attributes:
        number: of the setting; one that is changed is another one.
        levels: what is written down; none if nothing is.
        rate: one of so many requests is traced. count: so many are, and no more; -1 for any number.
        log_frequency: a file is complete with so many traces; 0 has all in one.
    """

    number: int = 0
    levels: tuple[str, ...] = ()
    rate: int = 1000
    count: int = UNLIMITED
    log_frequency: int = 0

    @property
    def traces(self) -> bool:
        """Whether anything is traced."""
        return bool(self.levels) and self.rate > 0


class Tracing(msgspec.Struct, frozen=True, kw_only=True):
    """What all frontends do.

    Attributes:
        file: where traces are written, as it was given; empty for nowhere. state: of what frontends have in common.
        common: for all models but those that have settings of their own. models: these, by name.
    """

    file: str = ""
    state: str = ""
    common: TraceSetting = TraceSetting()
    models: dict[str, TraceSetting] = {}

    def of(self, model: str) -> TraceSetting:
        """What holds for a model; an empty name stands for those that have nothing of their own."""
        return self.models.get(model, self.common)

    @property
    def settings(self) -> tuple[TraceSetting, ...]:
        """All of them."""
        return (self.common, *self.models.values())


def invalid_reason(setting: TraceSetting, file: str) -> str:
    """Why nothing can be traced so; empty if it can, or is not to be."""
    if not setting.levels:
        return ""
    if not setting.rate:
        return "sample rate must be non-zero"
    return "" if file else "trace file name is not given; --trace-config triton,file=PATH says it"


# --- --trace-config ---------------------------------------------------------------------------------------------------

_FORM = re.compile(r"(?:([^,=]*),)?([^,=]+)=(.+)", re.DOTALL)

_LEVELS = {
    **dict.fromkeys(("timestamps", "true", "on", "min", "max"), "TIMESTAMPS"),
    "tensors": "TENSORS",
    **dict.fromkeys(("off", "false"), OFF),
}
"""As Triton reads them."""


def read_trace_config(written: Sequence[str]) -> Tracing:
    """What --trace-config says. Raises ConfigError: it says what is not there, or cannot work."""
    levels: list[str] = []
    numbers = {"rate": 1000, "count": UNLIMITED, "log-frequency": 0}
    file = ""
    for each in _joined(written):
        match = _FORM.fullmatch(each)
        if match is None or match[1] == "":
            raise _wrong(f"{each!r:.100} is not of the form <mode>,<setting>=<value> or <setting>=<value>")
        mode, name, value = match.groups()
        if mode not in (None, MODE):
            raise _wrong(f"{each!r:.100} is about the mode {mode!r:.40}; there is triton, which writes files")
        match mode, name:
            case None, "level":
                levels.append(_level(value))
            case None, "mode":
                if value.lower() != MODE:
                    raise _wrong(f"mode is {value!r:.40}; there is triton, which writes files")
            case (None, "rate" | "count") | ("triton", "log-frequency"):
                numbers[name] = _number(name, value)
            case "triton", "file":
                file = value
            case _:
                known = one_of(("triton,file", "triton,log-frequency", "level", "rate", "count", "mode"))
                raise _wrong(f"{each!r:.100} sets what there is not; there is {known}")
    setting = TraceSetting(
        levels=() if OFF in levels else tuple(level for level in LEVELS if level in levels),
        rate=numbers["rate"],
        count=numbers["count"],
        log_frequency=numbers["log-frequency"],
    )
    if why := invalid_reason(setting, file):
        raise _wrong(why)
    return Tracing(file=file, common=setting)


def _joined(written: Sequence[str]) -> list[str]:
    """An environment variable has commas between settings, too."""
    found: list[str] = []
    for each in written:
        if found and "=" not in found[-1]:
            each = f"{found.pop()},{each}"
        found.append(each)
    return found


def _level(value: str) -> str:
    level = _LEVELS.get(value.lower())
    if level is None:
        raise _wrong(f"level is {value!r:.40}; give {one_of((*LEVELS, OFF))}")
    return level


def _number(name: str, value: str) -> int:
    least = UNLIMITED if name == "count" else 0
    if not re.fullmatch(r"-?[0-9]{1,10}", value) or not least <= int(value) <= MOST:
        raise _wrong(f"{name} is {value!r:.40}, but must be a whole number from {least} to {MOST}")
    return int(value)


def _wrong(why: str) -> ConfigError:
    return ConfigError(f"trace_config: {why}", "trace_config")


# --- what changes -----------------------------------------------------------------------------------------------------


class ChangeTracing(msgspec.Struct, frozen=True, tag="change_tracing", kw_only=True):
    """Trace otherwise.

    Attributes:
        model: whose requests; empty for all that have nothing of their own.
        levels, rate, count, log_frequency: as `TraceSetting` has them; None leaves it as it is.
        clear: the names of those of these that are to be as if nobody had ever set them.
    """

    model: str = ""
    levels: tuple[str, ...] | None = None
    rate: int | None = None
    count: int | None = None
    log_frequency: int | None = None
    clear: tuple[str, ...] = ()

    def specified(self, before: Mapping[str, object]) -> dict[str, object]:
        """What is set when this is done, where some was set before."""
        given = {name: value for name in SPECIFIED if (value := getattr(self, name)) is not None}
        return {name: value for name, value in {**before, **given}.items() if name not in self.clear}
