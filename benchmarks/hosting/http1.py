"""A client of HTTP/1.1 that costs little: its request, head and body, was written before."""

import asyncio
import re
import time

from load import Client, Clock

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_START_SIZE = 1 << 16
_SHOWN = 500


class HttpClient(Client, asyncio.BufferedProtocol):
    """Receives into one buffer, where an answer lies from its head to its end."""

    def __init__(self, request: bytes, clock: Clock) -> None:
        super().__init__(request, clock)
        self._buffer = bytearray(_START_SIZE)
        self._filled = self._head = self._whole = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.sent = time.perf_counter()
        self.send()

    def send(self) -> None:
        self._filled = self._whole = 0
        self.transport.write(self.request)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if not self._whole and not self._read_head():
            return
        if self._filled >= self._whole:
            self.answered(lambda: bytes(self._buffer[self._head : self._whole]))

    def _read_head(self) -> bool:
        """Whether the head is there; then it is known how long the answer is."""
        ends = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if ends < 0:
            return False
        length = _LENGTH.search(self._buffer, 0, ends)
        if length is None or not self._buffer.startswith(b"HTTP/1.1 200 "):
            self.fail(repr(bytes(self._buffer[: min(self._filled, _SHOWN)])))
            return False
        self._head = ends + 4
        self._whole = self._head + int(length[1])
        if self._whole > len(self._buffer):
            self._buffer = bytearray(self._buffer[: self._filled]).ljust(self._whole, b"\0")
        return True
