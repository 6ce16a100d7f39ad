"""Which hosts requests may name.

A web page of another site can give its own name the address of a server on the reader's machine (DNS rebinding): to the
browser both are then one site, and the page reads every answer. The Host header still says the name. Addresses are
always allowed, as no name of another site is one.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import ApiError, error_response, invalid

ANY = "*"

LOCAL_NAMES = ("localhost", "*.localhost", "host.docker.internal")
"""Names that lead to a loopback address wherever they are looked up; the last is how containers reach their host's."""

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_PATTERN = re.compile(rf"\*|(?:\*\.)?{_NAME}")
_HOST = re.compile(rf"(?:\[(?P<address>[0-9A-Fa-f:.]+)(?:%[^\]]*)?\]|(?P<name>{_NAME})\.?)(?::\d*)?")


def is_pattern(text: str) -> bool:
    """Whether it may be given as an allowed host: a name, `*.name` for all below it, or `*` for every name."""
    return _PATTERN.fullmatch(text) is not None


def local_hosts(listener: socket.socket) -> tuple[str, ...]:
    """The hosts to allow if nobody says: on a loopback address this machine's names, elsewhere any."""
    if listener.family == socket.AF_UNIX or not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        return ()
    own = socket.gethostname().lower()
    return (*LOCAL_NAMES, *((own,) if is_pattern(own) and own != ANY else ()))


class HostMiddleware:
    """Refuses requests that name another host.

    Args:
        allowed: patterns as in `is_pattern`.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._names = {pattern.lower() for pattern in allowed if not pattern.startswith("*")}
        self._suffixes = tuple(pattern[1:].lower() for pattern in allowed if pattern.startswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._problem(Headers(scope=scope).get("host", "").strip())):
            await error_response(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, host: str) -> ApiError | None:
        if not host:  # HTTP/1.0, which no browser speaks
            return None
        parsed = _HOST.fullmatch(host)
        if parsed is None:
            return invalid(f"The Host header {host[:100]!r} is no host.")
        name = parsed["address"] or parsed["name"].lower()
        if name in self._names or name.endswith(self._suffixes) or _is_address(name):
            return None
        name = name[:100]
        message = f"This server does not answer to the name '{name}'. If it is yours, add --allowed-hosts {name}."
        return ApiError(403, message, code="host_not_allowed")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
