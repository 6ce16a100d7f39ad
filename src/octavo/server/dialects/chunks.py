"""JSON made of bytes. In streams everything but a token's text is prepared once; long lists are written in pieces."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

NULL = b"null"


class ChunkWriter:
    """Writes the chunks of one streamed completion.

    Args:
        head: members of every chunk: id, object, created and model.
        include_usage: whether the client wants a last chunk with the usage; all other chunks then say null.
    """

    def __init__(self, head: Mapping[str, object], include_usage: bool) -> None:
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._no_usage = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def choice(
        self,
        index: int,
        content: bytes,
        *,
        logprobs: bytes = NULL,
        finish_reason: bytes = NULL,
        usage: Mapping[str, object] | None = None,
        extra: bytes = b"",
        top: bytes = b"",
    ) -> bytes:
        """One event about one choice.

        Args:
            content: its part that carries text, as `"key":value`.
            usage: so far, if the client wants it in every chunk.
            extra, top: further members of the choice and of the chunk, each with a comma before it.
        """
        end = self._no_usage if usage is None else b',"usage":%b}\n\n' % orjson.dumps(usage)
        return b'%b{"index":%d,%b,"logprobs":%b,"finish_reason":%b%b}]%b%b' % (
            self._head,
            index,
            content,
            logprobs,
            finish_reason,
            extra,
            top,
            end,
        )

    def usage(self, usage: Mapping[str, object]) -> bytes:
        """The event with the usage. Its choices are empty: benchmark tools look for it only there."""
        return b'%b],"usage":%b}\n\n' % (self._head, orjson.dumps(usage))


def member(name: str, value: Any) -> bytes:
    """One more member of an object, with a comma before it."""
    return b',"%b":%b' % (name.encode(), orjson.dumps(value))


def listed(slices: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """An array, one piece per slice of its items."""
    separator = b"["
    for items in slices:
        if items:
            yield separator + orjson.dumps(items)[1:-1]
            separator = b","
    yield b"[]" if separator == b"[" else b"]"
