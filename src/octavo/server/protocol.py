"""Uvicorn's HTTP/1.1 protocol with a bound on headers, which it lacks, and with our error bodies below the routes."""

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.server.errors import error_body, invalid

MAX_HEAD_BYTES = 64 * 1024


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes: int | None = None
    """Received of the request line and headers that are being read; None outside of them."""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Its headers are complete."""
        self._head_bytes = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; give up on headers without end."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"The request's headers are larger than {MAX_HEAD_BYTES:,} bytes.")

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close."""
        body = orjson.dumps(error_body(invalid(msg)))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
