"""Reading server-sent events as the HTML standard defines them."""

import codecs
import re
from collections.abc import Iterable, Iterator

_LINE_END = re.compile(r"\r\n|\n|\r")


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of every event in a stream that arrives in pieces of any size. One that is not finished is dropped.

    Lines end with LF, CR or CRLF and with nothing else: the other separators that `str.splitlines` knows may be part of
    the data.
    """
    data: list[str] = []
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif name == "data":  # a comment has no name; other fields say nothing here
            data.append(value.removeprefix(" "))


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    rest = ""
    for chunk in chunks:
        rest += decoder.decode(chunk)
        # A CR at the end may be half of a CRLF.
        *lines, last = _LINE_END.split(rest.removesuffix("\r"))
        rest = last + "\r" if rest.endswith("\r") else last
        yield from lines
    if rest.endswith("\r"):
        yield rest.removesuffix("\r")
