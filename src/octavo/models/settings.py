"""A model's config.json, read with care: it comes from strangers."""

from collections.abc import Mapping
from typing import Any

from octavo.errors import CheckpointError, UnsupportedError

_MOST = 2**31 - 1
"""Sizes above this are no model's."""

_LARGEST = 1e18
"""As are numbers, the highest of which are the bases of rotary embeddings."""


class Settings:
    """Values by key, checked as they are read; null counts as absent.

    Every method raises `CheckpointError` for a value that cannot be, or that is absent and has no default. In
    messages `source` says where the values come from: the path of a file.
    """

    def __init__(self, values: Mapping[str, Any], source: str = "config", prefix: str = "") -> None:
        self.source = source
        self._values = values
        self._prefix = prefix

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = _MOST) -> int:
        """A whole number from `least` to `most`."""
        value = self.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def nullable_integer(self, key: str, default: int) -> int | None:
        """A positive whole number, or None for null, which here differs from an absent key."""
        return None if key in self._values and self._values[key] is None else self.integer(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(key, default)
        if not _is_positive(value):
            raise self.wrong(key, "a positive number")
        return float(value)

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of `count` positive numbers."""
        values = self.get(key)
        if not isinstance(values, list) or len(values) != count or not all(map(_is_positive, values)):
            raise self.wrong(key, f"a list of {count} positive numbers")
        return [float(value) for value in values]

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def section(self, key: str) -> "Settings":
        """A nested object; empty if absent."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Settings(value, self.source, f"{self._prefix}{key}.")

    def over(self, defaults: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> "Settings":
        """These settings, completed by `defaults` and overruled by `overrides`."""
        present = {key: value for key, value in self._values.items() if value is not None}
        return Settings({**defaults, **present, **(overrides or {})}, self.source, self._prefix)

    def refuse(self, key: str) -> None:
        """Raise `UnsupportedError` unless `key` is absent, null or false."""
        if self.get(key, False) is not False:
            raise self.unsupported(key, "only models without it are supported")

    def unsupported(self, key: str, supported: str) -> UnsupportedError:
        return UnsupportedError(f"{self._name(key)} is {self._shown(key)}, which is not supported; {supported}")

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self._name(key)} is {self._shown(key)}, not {wanted}")

    def _name(self, key: str) -> str:
        return f"{self.source}: {self._prefix}{key}"

    def _shown(self, key: str) -> str:
        return f"{self.get(key)!r:.80}" if key in self._values else "missing"

    def __bool__(self) -> bool:
        return bool(self._values)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _LARGEST  # which NaN and infinity are not
