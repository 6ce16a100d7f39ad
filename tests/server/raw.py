"""Requests on sockets of one's own, for tests of what happens when, and of clients that behave badly."""

import http.client
import json
import socket
from typing import Any


def connect(url: str) -> socket.socket:
    """A connection on which nothing has been said."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_answer(connection: socket.socket, method: str = "GET") -> http.client.HTTPResponse:
    """The next response on a connection, whole. Its body is `.body`."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    response.body = response.read()  # type: ignore[attr-defined]
    return response


def raw_stream(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """Send a request on a socket of one's own; the caller reads what comes, and when."""
    connection = connect(url)
    data = json.dumps(body).encode()
    fields = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    head = f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection
