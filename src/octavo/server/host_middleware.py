"""Refuses requests that name a host that is not ours (see `octavo.server.hosts`)."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import ApiError, error_response, invalid
from octavo.server.hosts import is_address, split_host

MAX_KNOWN = 64
"""Hosts that are remembered as ours."""


class HostMiddleware:
    """Refuses requests that name another host.

    Args:
        allowed: patterns as in `octavo.server.hosts.is_pattern`.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._names = {pattern.lower() for pattern in allowed if not pattern.startswith("*")}
        self._known: set[bytes] = set()
        self._suffixes = tuple(pattern[1:].lower() for pattern in allowed if pattern.startswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            if host not in self._known:
                if error := self._problem(host.decode("latin-1").strip()):
                    await error_response(error, scope)(scope, receive, send)
                    return
                if len(self._known) < MAX_KNOWN:
                    self._known.add(host)
        await self._app(scope, receive, send)

    def _problem(self, host: str) -> ApiError | None:
        if not host:  # HTTP/1.0, which no browser speaks
            return None
        name = split_host(host)
        if name is None:
            return invalid(f"The Host header {host[:100]!r} is no host.")
        if name in self._names or name.endswith(self._suffixes) or is_address(name):
            return None
        name = name[:100]
        message = f"This server does not answer to the name '{name}'. If it is yours, add --allowed-hosts {name}."
        return ApiError(403, message, code="host_not_allowed")
