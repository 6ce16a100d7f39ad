"""JSON of megabytes, parsed so that other threads can run meanwhile.

A parser in C keeps the interpreter to itself: a body of a million token ids would hold up all streams for 50 to 100 ms.
So the text is cut where containers have commas, and long strings between characters, and parsed in pieces of a few
milliseconds. The places are found with numpy, which lets other threads run.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

MAX_VALUES = 2**20
"""Numbers, strings and containers of a body: as many tokens as may wait in a queue, by default."""

MAX_CONTAINERS = 2**17
"""Objects and arrays of a body. Python's garbage collector walks over all of them at once."""

MAX_DEPTH = 1000

PIECE_VALUES = 2**14
PIECE_BYTES = 2**19
"""Of a text; a piece has either at most."""

Indices = npt.NDArray[np.int64]


class TooManyValuesError(ValueError):
    """The text is short enough, but what it says would take too much memory."""


class ArrayTooLongError(ValueError):
    """An array has more values than anything can have.

    Attributes:
        count: values. field: the member of the outermost object that has it, None if there is none.
    """

    def __init__(self, count: int) -> None:
        super().__init__(f"an array has {count:,} values")
        self.count = count
        self.field: str | None = None


def loads(data: bytes, longest_array: int = MAX_VALUES) -> Any:
    """The same as `orjson.loads`.

    Raises:
        orjson.JSONDecodeError: it is not JSON.
        TooManyValuesError: it has too many values or containers.
        ArrayTooLongError: one of its arrays has more values than `longest_array`, which is at least PIECE_VALUES.
    """
    if len(data) <= PIECE_BYTES and data.count(b",") + data.count(b"[") + data.count(b"{") <= PIECE_VALUES:
        return orjson.loads(data)
    structure = _Structure(data, longest_array)
    if structure.openings + structure.commas > MAX_VALUES:
        raise TooManyValuesError(f"it has more than {MAX_VALUES:,} values")
    if structure.openings > MAX_CONTAINERS:
        raise TooManyValuesError(f"it has more than {MAX_CONTAINERS:,} objects and arrays")
    return structure.value(0, len(data))


class _Structure:
    """Where a text's commas and brackets are, outside of strings.

    `_at` has their positions, `_depth` how many containers are open after each.
    """

    def __init__(self, data: bytes, longest_array: int) -> None:
        self._data = data
        self._longest_array = longest_array
        text = np.frombuffer(data, np.uint8)
        self._quotes = _unescaped_quotes(text)
        if len(self._quotes) % 2:
            raise _invalid("a string does not end", data)
        at = np.flatnonzero(_STRUCTURAL[text])
        if len(self._quotes):
            at = at[np.searchsorted(self._quotes, at) % 2 == 0]
        kinds = text[at]
        steps = _STEP[kinds]
        self._at: Indices = at
        self._is_comma: npt.NDArray[np.bool_] = kinds == ord(",")
        self._depth = np.cumsum(steps, dtype=np.int64)
        self.openings = int(np.count_nonzero(steps == 1))
        self.commas = int(np.count_nonzero(self._is_comma))
        if len(at) and (self._depth.min() < 0 or self._depth[-1] != 0):
            raise _invalid("brackets do not match", data)
        if len(at) and self._depth.max() > MAX_DEPTH:
            raise _invalid(f"it is nested more than {MAX_DEPTH} levels deep", data)

    def value(self, start: int, end: int) -> Any:
        """The one value between two positions."""
        first, last = np.searchsorted(self._at, (start, end))
        if last - first <= PIECE_VALUES and end - start <= PIECE_BYTES:
            return orjson.loads(memoryview(self._data)[start:end])
        if first == last:
            return self._scalar(start, end)
        opening, closing = int(self._at[first]), int(self._at[last - 1])
        kind = self._data[opening : opening + 1] + self._data[closing : closing + 1]
        if (
            kind not in (b"[]", b"{}")
            or self._data[start:opening].strip(_SPACES)
            or self._data[closing + 1 : end].strip(_SPACES)
        ):
            raise _invalid("brackets do not match", self._data)
        inside = slice(first + 1, last - 1)
        if self._depth[inside].min(initial=self._depth[first]) < self._depth[first]:
            raise _invalid("there is more than one value", self._data)
        separators = first + 1 + np.flatnonzero(self._is_comma[inside] & (self._depth[inside] == self._depth[first]))
        return self._container(kind, opening, closing, separators)

    def _container(self, kind: bytes, opening: int, closing: int, separators: Indices) -> Any:
        """A container, as many members at a time as make a piece.

        Args:
            separators: which of `_at` are the commas between its members.
        """
        is_array = kind == b"[]"
        if is_array and len(separators) >= self._longest_array:
            raise ArrayTooLongError(len(separators) + 1)
        values: list[Any] = []
        members: dict[str, Any] = {}
        start, done = opening + 1, 0
        if not len(separators) and not self._data[start:closing].strip(_SPACES):
            return values if is_array else members
        while done <= len(separators):
            first, limit = np.searchsorted(self._at, (start, start + PIECE_BYTES))
            limit = min(first + PIECE_VALUES, limit)
            upto = max(int(np.searchsorted(separators, limit)), done + 1)
            end = int(self._at[separators[upto - 1]]) if upto <= len(separators) else closing
            count = min(upto, len(separators) + 1) - done
            if count == 1 and not is_array:
                members |= self._member(start, end)
            elif count == 1:
                values.append(self.value(start, end))
            else:
                piece = orjson.loads(b"%b%b%b" % (kind[:1], self._data[start:end], kind[1:]))
                if is_array:
                    values += piece
                else:
                    members |= piece
            start, done = end + 1, done + count
        return values if is_array else members

    def _scalar(self, start: int, end: int) -> Any:
        """A value that is long without being a container."""
        data = self._data
        first, last = np.searchsorted(self._quotes, (start, end))
        if last - first != 2:
            return orjson.loads(memoryview(data)[start:end])
        at, closing = int(self._quotes[first]) + 1, int(self._quotes[last - 1])
        if data[start : at - 1].strip(_SPACES) or data[closing + 1 : end].strip(_SPACES):
            raise _invalid("a value is not valid", data)
        pieces = []
        while at < closing:
            match = _CHARACTERS.match(data, at, min(at + PIECE_BYTES, closing))
            cut = at if match is None else match.end()
            while data[cut] & 0xC0 == 0x80:  # inside a character
                cut -= 1
            if cut <= at:
                raise _invalid("a string has an escape that is none, or is not UTF-8", data)
            pieces.append(orjson.loads(b'"%b"' % data[at:cut]))
            at = cut
        return "".join(pieces)

    def _member(self, start: int, end: int) -> dict[str, Any]:
        """One member of an object whose value may be large."""
        quote = int(np.searchsorted(self._quotes, start))
        if quote + 1 >= len(self._quotes):
            raise _invalid("a member has no name", self._data)
        after = int(self._quotes[quote + 1]) + 1
        colon = self._data.find(b":", after, end)
        if colon < 0:
            raise _invalid("a member has no value", self._data)
        name = self.value(start, after)
        if not isinstance(name, str) or self._data[after:colon].strip(_SPACES):
            raise _invalid("a member has no name", self._data)
        try:
            return {name: self.value(colon + 1, end)}
        except ArrayTooLongError as error:
            error.field = name
            raise


def _table(entries: dict[str, int], kind: type) -> npt.NDArray[Any]:
    table: npt.NDArray[Any] = np.zeros(256, kind)
    for characters, entry in entries.items():
        table[list(characters.encode())] = entry
    return table


_STRUCTURAL = _table({",[]{}": 1}, np.bool_)
_STEP = _table({"[{": 1, "]}": -1}, np.int8)


def _unescaped_quotes(text: npt.NDArray[np.uint8]) -> Indices:
    """Positions of the quotes that begin and end strings: those after an even number of backslashes."""
    quotes: Indices = np.flatnonzero(text == ord('"'))
    backslashes = np.flatnonzero(text == ord("\\"))
    if not len(backslashes):
        return quotes
    is_first = np.diff(backslashes, prepend=-2) != 1
    run_starts = backslashes[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]  # of every backslash's run
    before = np.minimum(np.searchsorted(backslashes, quotes - 1), len(backslashes) - 1)
    is_after = backslashes[before] == quotes - 1
    ends_string = ~is_after | ((quotes - run_starts[before]) % 2 == 0)
    found: Indices = quotes[ends_string]
    return found


_SPACES = b" \t\n\r"

# Of a string, whole escapes: one alone is half a character if it is the first of a pair.
_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4})*+"
)


def _invalid(reason: str, data: bytes) -> orjson.JSONDecodeError:
    return orjson.JSONDecodeError(reason, "", len(data))
