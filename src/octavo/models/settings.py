"""A model's config.json, read with care: it comes from strangers."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from octavo.errors import CheckpointError, UnsupportedError


class Settings:
    """Values by key, checked as they are read; null counts as absent.

    Every method raises `CheckpointError` for a value that cannot be, or that is absent and has no default.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(key, default)
        if type(value) is not int or value < 1:
            raise self.wrong(key, "a positive whole number")
        return value

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
        return Settings(value, f"{self._prefix}{key}.")

    def over(self, defaults: Mapping[str, Any]) -> "Settings":
        """These settings, completed by `defaults`."""
        present = {key: value for key, value in self._values.items() if value is not None}
        return Settings({**defaults, **present}, self._prefix)

    def refuse(self, key: str) -> None:
        """Raise `UnsupportedError` unless `key` is absent, null or false."""
        if self.get(key, False) is not False:
            value = repr(self.get(key))
            raise UnsupportedError(f"config: {self._prefix}{key} is {value:.80}; only models without it are supported")

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        found = f"{self.get(key)!r:.80}" if key in self._values else "missing"
        return CheckpointError(f"config: {self._prefix}{key} is {found}, not {wanted}")

    def __bool__(self) -> bool:
        return bool(self._values)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value) and value > 0
