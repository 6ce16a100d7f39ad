"""The socket that a server listens on, taken before anything else is done. Light: it loads nothing of the server."""

import errno
import socket
from pathlib import Path

from octavo.errors import ConfigError

BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Take a port before anything else is done, so that one in use is found out at once. Port 0 is any free one.

    Raises:
        ConfigError: the address is in use, not ours, or not allowed.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # A server may start while connections of the one before it linger.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _listen(listener, (host, port), f"{host} port {port}", "choose another with --host and --port")


def bind_unix(path: str) -> socket.socket:
    """Listen on a Unix socket. The file that a killed server left behind is replaced.

    Raises:
        ConfigError: another server listens there, or the path cannot be used.
    """
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == errno.ECONNREFUSED:  # nobody listens any more
                Path(path).unlink()
    return _listen(socket.socket(socket.AF_UNIX), path, path, "choose another path with --uds")


def _listen(listener: socket.socket, address: tuple[str, int] | str, where: str, remedy: str) -> socket.socket:
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {where}: {reason.rstrip('.')}; {remedy}") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """What to tell clients: a URL, or the path of a Unix socket."""
    name = listener.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
