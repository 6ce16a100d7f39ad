"""Refuses requests that name a host that is not ours (see `octavo.server.hosts`)."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import ApiError, error_response, invalid
from octavo.server.hosts import ANY, is_address, split_host

MAX_KNOWN = 64
"""Hosts that are remembered as ours."""


class AllowedHosts:
    """The hosts that are ours.

    Args:
        patterns: as in `octavo.server.hosts.is_pattern`; none for every host.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._names = {pattern.lower() for pattern in patterns if not pattern.startswith("*")}
        self._suffixes = tuple(pattern[1:].lower() for pattern in patterns if pattern.startswith("*"))
        self._any = not patterns or ANY in patterns
        self._known: set[bytes] = set()

    def problem(self, host: bytes) -> ApiError | None:
        """What is wrong with the Host header of a request, if anything is."""
        if self._any or host in self._known:
            return None
        error = self._find_problem(host.decode("latin-1").strip())
        if error is None and len(self._known) < MAX_KNOWN:
            self._known.add(host)
        return error

    def _find_problem(self, host: str) -> ApiError | None:
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


class HostMiddleware:
    """Refuses requests that name another host.

    Args:
        allowed: see `AllowedHosts`.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = AllowedHosts(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            if error := self._allowed.problem(host):
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)
