"""Reading event streams as strictly as the format is defined."""

import json
from typing import Any


def events(raw: str) -> list[Any]:
    """The JSON of a complete stream's events. Fails unless each frame is `data: …` or a comment, and [DONE] is last."""
    frames = raw.split("\n\n")
    assert frames.pop() == "", "the stream ends in the middle of a frame"
    data = [frame for frame in frames if not frame.startswith(":")]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in data)
    payloads = [frame.removeprefix("data: ") for frame in data]
    assert payloads.pop() == "[DONE]"
    return [json.loads(payload) for payload in payloads]


def text_of(chunks: list[Any], index: int = 0) -> str:
    """A choice's text, of either API's chunks."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)
