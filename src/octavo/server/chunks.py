"""Server-sent events of a generation, made from bytes: per token only the new text is encoded, everything else is
prepared once per stream."""

from typing import Any

import orjson

from octavo.server.generation import Usage

NULL = b"null"


def escape_separators(events: bytes) -> bytes:
    """Events whose JSON has U+0085, U+2028 and U+2029 escaped. Only LF and CR end a line of an event stream, but many
    clients split with something like `str.splitlines`. JSON itself escapes the others that it splits at."""
    if events.isascii():
        return events
    for raw, escaped in _SEPARATORS:
        if raw[0] in events:  # a single byte is found ten times as fast
            events = events.replace(raw, escaped)
    return events


_SEPARATORS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


class ChunkWriter:
    """Writes the chunks of one streamed response.

    Args:
        include_usage: whether the client wants a last chunk with the usage; all other chunks then say null.
    """

    def __init__(self, *, id: str, object: str, created: int, model: str, include_usage: bool) -> None:  # noqa: A002
        fields = {"id": id, "object": object, "created": created, "model": model}
        self._head = b"data: " + orjson.dumps(fields)[:-1] + b',"choices":['
        self._no_usage = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def choice(
        self,
        index: int,
        content: bytes,
        *,
        logprobs: bytes = NULL,
        finish_reason: bytes = NULL,
        usage: Usage | None = None,
        extra: bytes = b"",
        top: bytes = b"",
    ) -> bytes:
        """One event about one choice.

        Args:
            content: its part that carries text, as `"key":value`.
            usage: so far, if the client wants it in every chunk.
            extra, top: further members of the choice and of the chunk, each with a comma before it.
        """
        end = self._no_usage if usage is None else b',"usage":%b}\n\n' % orjson.dumps(usage.as_dict())
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

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage. Its choices are empty: benchmark tools look for it only there."""
        return b'%b],"usage":%b}\n\n' % (self._head, orjson.dumps(usage.as_dict()))


def member(name: str, value: Any) -> bytes:
    """One more member of an object, with a comma before it."""
    return b',"%b":%b' % (name.encode(), orjson.dumps(value))
