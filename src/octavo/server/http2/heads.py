"""What the heads of a connection's requests say (HPACK, RFC 7541)."""

from typing import Any

import hpack

from octavo.server.http2.stream import Application

MAX_HEAD = 16 * 1024
"""Bytes of all header fields of a request, as HTTP/2 counts them."""

MAX_HEADS = 64
"""Different heads that are remembered."""

MAX_REMEMBERED = 1024
"""Bytes of the fields of one: each connection has its own."""

INDEXED, ADDED, RESIZED = 0x80, 0x40, 0x20
"""How the first bytes of fields begin: one of the table; one that is put there; the table's size. Others leave it."""


class HeadReader:
    """Reads heads. Clients send the same ones again and again: as long as the table stays as it is they say the same.

    Args:
        application: makes something of their fields.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._decoder = hpack.Decoder(MAX_HEAD)
        self._known: dict[bytes, Any] = {}

    def read(self, block: bytes) -> Any:
        """What a head says.

        Raises:
            hpack.HPACKError: it cannot be read. hpack.OversizedHeaderListError: it is longer than `MAX_HEAD`.
        """
        head = self._known.get(block)
        if head is None:
            fields = [(name, value) for name, value in self._decoder.decode(block, raw=True)]
            head = self._application.read_head(fields)
            if _changes_table(block) or len(self._known) >= MAX_HEADS:
                self._known.clear()
            elif sum([len(name) + len(value) for name, value in fields]) <= MAX_REMEMBERED >= len(block):
                self._known[block] = head
        return head


def _changes_table(block: bytes) -> bool:
    """Whether a head that can be read changes what others mean."""
    at = 0
    while at < len(block):
        first = block[at]
        if first & INDEXED:
            _, at = _integer(block, at, 0x7F)
        elif first & (ADDED | RESIZED):
            return True
        else:
            name, at = _integer(block, at, 0x0F)
            for _ in range(1 if name else 2):
                length, at = _integer(block, at, 0x7F)
                at += length
    return False


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """A number that begins in the lower bits of a byte (section 5.1), and where it ends."""
    number = block[at] & prefix
    at += 1
    if number == prefix:
        shift = 0
        while True:
            byte = block[at]
            at += 1
            number += (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
    return number, at
