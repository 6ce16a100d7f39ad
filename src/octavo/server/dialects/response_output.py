"""Items of a response's output as they grow, and the events that say so.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import orjson

from octavo.server.schema.response_items import new_id


class EventLog:
    """Events that are still to be sent, each numbered.

    Attributes:
        wanted: whether anybody reads them; otherwise none are written.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._events: list[bytes] = []
        self._next = 0

    def emit(self, kind: str, **members: Any) -> None:
        """An event of that type."""
        if self.wanted:
            self._append(head_of(kind, **members))

    def emit_piece(self, head: bytes, piece: str, more: bytes) -> None:
        """An event about a piece of text, of which there is one for every token: `head` was prepared once."""
        if self.wanted:
            self._append(b'%b,"delta":%b%b' % (head, orjson.dumps(piece), more))

    def take(self) -> bytes:
        """What is to be sent now."""
        events = b"".join(self._events)
        self._events.clear()
        return events

    def _append(self, event: bytes) -> None:
        self._events.append(b'%b,"sequence_number":%d}\n\n' % (event, self._next))
        self._next += 1


def head_of(kind: str, **members: Any) -> bytes:
    """An event's beginning: its object is still open."""
    return b"event: %b\ndata: %b" % (kind.encode(), orjson.dumps({"type": kind, **members})[:-1])


class OutputItem(ABC):
    """An item of the output that grows.

    Args:
        index: its place in the output.
        call: which of the answer's calls it is, if it is one.
    """

    prefix: ClassVar[str]
    topic: ClassVar[str]

    def __init__(self, events: EventLog, index: int, call: int = 0) -> None:
        self.call = call
        self._events = events
        self._id = new_id(self.prefix)
        self._index = index
        self._pieces: list[str] = []
        self._place: dict[str, Any] = {"item_id": self._id, "output_index": index}

    def begin(self) -> None:
        """Say that it is there."""
        self._events.emit("response.output_item.added", output_index=self._index, item=self._as_begun())
        self._begin_content()
        self._head = head_of(f"{self.topic}.delta", **self._place)

    def add(self, piece: str, scores: list[dict[str, Any]]) -> None:
        """It goes on."""
        self._pieces.append(piece)
        if piece or scores:
            self._events.emit_piece(self._head, piece, self._more(scores))

    def end(self, status: str) -> dict[str, Any]:
        """It is complete, or will never be. Returns it as it stays."""
        item = self.item(status)
        self._end_content(item)
        self._events.emit("response.output_item.done", output_index=self._index, item=item)
        return item

    @abstractmethod
    def item(self, status: str) -> dict[str, Any]:
        """As it is now."""

    @abstractmethod
    def _as_begun(self) -> dict[str, Any]: ...

    @abstractmethod
    def _begin_content(self) -> None: ...

    @abstractmethod
    def _end_content(self, item: dict[str, Any]) -> None: ...

    def _more(self, scores: list[dict[str, Any]]) -> bytes:
        """Further members of an event about a piece."""
        return b""

    @property
    def _text(self) -> str:
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


class _ItemWithContent(OutputItem):
    """One that has its text in a part."""

    def __init__(self, events: EventLog, index: int) -> None:
        super().__init__(events, index)
        self._place["content_index"] = 0

    @abstractmethod
    def _part(self, text: str) -> dict[str, Any]: ...

    def _as_begun(self) -> dict[str, Any]:
        return {**self.item("in_progress"), "content": []}

    def _begin_content(self) -> None:
        self._events.emit("response.content_part.added", **self._place, part=self._part(""))

    def _end_content(self, item: dict[str, Any]) -> None:
        [part] = item["content"]
        more = {name: part[name] for name in ("text", "logprobs") if name in part}
        self._events.emit(f"{self.topic}.done", **self._place, **more)
        self._events.emit("response.content_part.done", **self._place, part=part)


class MessageOutput(_ItemWithContent):
    """What the client is meant to read."""

    prefix = "msg"
    topic = "response.output_text"

    def __init__(self, events: EventLog, index: int) -> None:
        super().__init__(events, index)
        self._scores: list[bytes] = []

    def item(self, status: str) -> dict[str, Any]:
        """As it is now. Log-probabilities are long: they are in JSON already."""
        logprobs = orjson.Fragment(b"[%b]" % b",".join(self._scores))
        content = [self._part(self._text) | {"logprobs": logprobs}]
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _more(self, scores: list[dict[str, Any]]) -> bytes:
        if not scores:
            return b',"logprobs":[]'
        written = orjson.dumps(scores)
        self._scores.append(written[1:-1])
        return b',"logprobs":' + written


class ReasoningOutput(_ItemWithContent):
    """What the model thinks."""

    prefix = "rs"
    topic = "response.reasoning_text"

    def item(self, status: str) -> dict[str, Any]:
        """As it is now."""
        content = [self._part(self._text)]
        return {"id": self._id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class CallOutput(OutputItem):
    """A call of a function. `call_id` comes back with its output."""

    prefix = "fc"
    topic = "response.function_call_arguments"

    def __init__(self, events: EventLog, index: int, call: int, *, call_id: str, name: str) -> None:
        super().__init__(events, index, call)
        self._call_id = call_id
        self._name = name

    def item(self, status: str) -> dict[str, Any]:
        """As it is now."""
        called = {"call_id": self._call_id, "name": self._name, "arguments": self._text}
        return {"id": self._id, "type": "function_call", "status": status, **called}

    def _as_begun(self) -> dict[str, Any]:
        return self.item("in_progress")

    def _begin_content(self) -> None:
        """A call has none."""

    def _end_content(self, item: dict[str, Any]) -> None:
        self._events.emit(f"{self.topic}.done", **self._place, name=self._name, arguments=item["arguments"])
