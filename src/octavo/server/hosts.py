"""Which hosts requests may name.

A web page of another site can give its own name the address of a server on the reader's machine (DNS rebinding): to the
browser both are then one site, and the page reads every answer. The Host header still says the name. Addresses are
always allowed, as no name of another site is one.
"""

import ipaddress
import re
import socket

ANY = "*"

LOCAL_NAMES = ("localhost", "*.localhost", "host.docker.internal")
"""Names that lead to a loopback address wherever they are looked up; the last is how containers reach their host's."""

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_PATTERN = re.compile(rf"\*|(?:\*\.)?{_NAME}")
_HOST = re.compile(rf"(?:\[(?P<address>[0-9A-Fa-f:.]+)(?:%[^\]]*)?\]|(?P<name>{_NAME})\.?)(?::\d*)?")

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[^\s/?#@:*A-Z]+)(?::\d+)?")


def is_pattern(text: str) -> bool:
    """Whether it may be given as an allowed host: a name, `*.name` for all below it, or `*` for every name."""
    return _PATTERN.fullmatch(text) is not None


def is_origin(text: str) -> bool:
    """Whether it may be given as an allowed origin: as a browser sends it (RFC 6454, 7), without a path, or `*`."""
    return text in (ANY, "null") or _ORIGIN.fullmatch(text) is not None


def local_hosts(listener: socket.socket) -> tuple[str, ...]:
    """The hosts to allow if nobody says: on a loopback address this machine's names, elsewhere any."""
    if listener.family == socket.AF_UNIX or not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        return ()
    own = socket.gethostname().lower()
    return (*LOCAL_NAMES, *((own,) if is_pattern(own) and own != ANY else ()))


def split_host(host: str) -> str | None:
    """The name or address in a Host header, in lower case; None if it is no host."""
    parsed = _HOST.fullmatch(host)
    return None if parsed is None else parsed["address"] or parsed["name"].lower()


def is_address(name: str) -> bool:
    """Whether it is an address and no name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
