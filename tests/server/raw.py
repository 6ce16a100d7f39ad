"""Requests on sockets of one's own, for tests of what happens when, and of clients that behave badly."""

import json
import socket
from typing import Any


def raw_stream(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """Send a request on a socket of one's own; the caller reads what comes, and when."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection
