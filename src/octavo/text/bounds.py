"""What a chat template may spend: work, memory and time, counted while it runs.

A unit of work is a node of the template's syntax tree that is computed, or four characters that are made. Whatever is
not counted by itself (comparisons, slices) is small, because every value is: strings by their length, containers by the
elements that printing them would show, shared ones as often as they occur.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from typing import Any

from octavo.text.written import Written

WORK_LIMIT = 1 << 25
"""Units for one rendering: a second or a few. A conversation of 16 MB takes a third of it."""

SIZE_LIMIT = 1 << 26
"""Characters of a value."""

_SECONDS = 3.0
"""Time for one rendering, for what units do not describe; on a busy machine as much processor time besides."""

_BETWEEN_CHECKS = 1024
_ELEMENT = 64
"""Characters that an element of a container counts for beside its own."""

_NUMBER_BITS = 4096
_MAX_WIDTH = 10_000
_PLAIN = frozenset({int, float, bool, type(None)})
_CONTAINERS = (list, tuple, KeysView, ValuesView, ItemsView)


class OutOfBounds(Exception):
    """A template that would take more than it may."""


class RaisedByTemplate(Exception):
    """`raise_exception(message)` in a template."""


class OutOfWork(OutOfBounds):
    """A template that does not come to its end within its work."""


class Budget:
    """What one rendering, or one compiling, has left. `with` it what this thread does counts."""

    __slots__ = ("_busy_until", "_check_at", "_deadline", "_left", "_weights", "_work")

    def __init__(self, work: int = WORK_LIMIT) -> None:
        self._work = self._left = work
        self._check_at = max(work - _BETWEEN_CHECKS, 0)
        self._deadline = time.monotonic() + _SECONDS
        self._busy_until: float | None = None
        # By identity: the weight of a container that was met before, which is kept so that its identity stays its own.
        self._weights: dict[int, tuple[int, Any]] = {}

    def __enter__(self) -> None:
        _active.budget = self

    def __exit__(self, *_: object) -> None:
        _active.budget = None

    def spend(self, units: int) -> None:
        """Raises OutOfWork."""
        self._left -= units
        if self._left < self._check_at:
            self._check()

    def _check(self) -> None:
        if self._left < 0:
            raise OutOfWork(f"more than {self._work} steps")
        if time.monotonic() > self._deadline:
            if self._busy_until is None:
                self._busy_until = time.thread_time() + _SECONDS
            elif time.thread_time() > self._busy_until:
                raise OutOfWork(f"more than {_SECONDS:.0f} s")
        self._check_at = max(self._left - _BETWEEN_CHECKS, 0)

    def made(self, value: Any) -> Any:
        """`value`, which the template has just made, if it is not too large."""
        if isinstance(value, str):
            self.reserve(len(value))
            if isinstance(value, Written):
                self.spend(len(value.spans))
        elif isinstance(value, list | tuple | dict):
            self.weigh(value)
        return value

    def reserve(self, characters: int) -> None:
        """Account for a value of so many characters."""
        if characters > SIZE_LIMIT:
            raise OutOfBounds(f"a value of {characters} characters, more than {SIZE_LIMIT}")
        self.spend(characters >> 2)

    def weigh(self, value: Any) -> int:
        """The characters of a value, elements of containers included."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, dict):
            elements: list[Any] = [*value.keys(), *value.values()]
        elif isinstance(value, _CONTAINERS):
            elements = list(value)
        else:
            return _ELEMENT
        if (known := self._weights.get(id(value))) is not None:
            return known[0]
        self.spend(len(elements))
        weight = _ELEMENT + _ELEMENT * len(elements)
        for element in elements:
            kind = type(element)
            weight += len(element) if kind is str else _ELEMENT if kind in _PLAIN else self.weigh(element)
        if weight > SIZE_LIMIT:
            raise OutOfBounds(f"a value of {weight} characters, more than {SIZE_LIMIT}")
        self._weights[id(value)] = weight, value
        return weight


class _Active(threading.local):
    budget: Budget | None = None


_active = _Active()


def current() -> Budget:
    """The budget that this thread's work counts against."""
    assert _active.budget is not None
    return _active.budget


# Operations whose result can be far larger than what they are given, and what is checked before.


def multiply(left: Any, right: Any) -> Any:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int):
            current().reserve(current().weigh(sequence) * max(count, 0))
    _bits(left, right, _magnitude(left) + _magnitude(right))
    return current().made(left * right)


def power(left: Any, right: Any) -> Any:
    _bits(left, right, _magnitude(left) * right if isinstance(right, int) else 0)
    return left**right


def _magnitude(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 0


def _bits(left: Any, right: Any, bits: int) -> None:
    if isinstance(left, int) and isinstance(right, int) and bits > _NUMBER_BITS:
        raise OutOfBounds(f"a number of {bits} bits, more than {_NUMBER_BITS}")


_NUMBER = re.compile(r"\d+")
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*")


def modulo(left: Any, right: Any) -> Any:
    """The remainder of numbers, or a string formatted the old way."""
    if isinstance(left, str):
        parts = right.values() if isinstance(right, Mapping) else right if isinstance(right, tuple) else (right,)
        largest = max((current().weigh(part) for part in parts), default=0)
        total = len(left)
        for conversion in _CONVERSION.findall(left):
            total += largest + check_widths(conversion.rpartition(")")[2])
        current().reserve(total)
    return current().made(left % right)


def check_widths(specification: str) -> int:
    """The sum of the numbers in a format specification, which are widths and precisions."""
    if "*" in specification:
        raise OutOfBounds("a format whose width is an argument")
    widths = [int(digits[:10]) for digits in _NUMBER.findall(specification)]
    if any(width > _MAX_WIDTH for width in widths) or len(specification) > 100:
        raise OutOfBounds(f"a format wider than {_MAX_WIDTH} characters: {specification:.40}")
    return sum(widths)


def whole(value: Any) -> int:
    """What a size can be reckoned with: what is no number is refused by the operation itself."""
    return value if isinstance(value, int) else 0


def of_padding(text: Any, width: Any = 80, *_: Any) -> int:
    return max(whole(width), current().weigh(text))


def of_tabs(text: str, tabsize: Any = 8) -> int:
    return len(text) + text.count("\t") * max(whole(tabsize), 0)


def of_replacement(text: Any, old: Any, new: Any, *_: Any) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def of_join(separator: str, elements: Any = ()) -> int:
    return (len(elements) if hasattr(elements, "__len__") else 0) * len(separator) + current().weigh(elements)


METHODS: dict[str, Callable[..., int]] = {
    "center": of_padding,
    "ljust": of_padding,
    "rjust": of_padding,
    "zfill": of_padding,
    "expandtabs": of_tabs,
    "replace": of_replacement,
    "join": of_join,
}
"""For methods of strings: how many characters the result can have, from the string and the arguments."""
