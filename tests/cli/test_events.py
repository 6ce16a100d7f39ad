"""Streams of events are read as the standard says, however they are cut."""

import pytest

from octavo.cli.events import events


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("data: a\n\ndata: b\n\n", ["a", "b"]),
        ("data:a\r\rdata:  b\r\r", ["a", " b"]),
        ("data: a\r\n\r\ndata:b\r\n\r\n", ["a", "b"]),
        ("data: a\ndata: b\ndata\n\n", ["a\nb\n"]),
        (": ping\n\n:\n\ndata: a\n: in between\n\n", ["a"]),
        ("event: x\nid: 1\nretry: 5\ndata: a\nunknown: y\n\nevent: y\n\n", ["a"]),
        ("\ufeffdata: a\n\n", ["a"]),
        ("data: a\n\ndata: unfinished", ["a"]),
        ("data: a\n\ndata: unfinished\n", ["a"]),
        ("data: a\r\n\r", ["a"]),
        ("data: {a: b}\n\n", ["{a: b}"]),
        ("\n\n\n", []),
        ("data: a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\n\n", ["a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"]),
        ("data: 😀é\n\n", ["😀é"]),
    ],
)
def test_events(stream: str, expected: list[str]) -> None:
    data = stream.encode()
    assert list(events([data])) == expected
    assert list(events([data[at : at + 1] for at in range(len(data))])) == expected
    for at in range(len(data)):
        assert list(events([data[:at], data[at:]])) == expected


def test_bytes_that_are_no_text() -> None:
    assert list(events([b"data: \xff\xe2\x80\n\n"])) == ["\ufffd\ufffd"]
