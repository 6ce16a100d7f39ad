"""The socket that a server listens on, taken before anything else is done. Light: it loads nothing of the server."""

import errno
import logging
import socket
from pathlib import Path

from octavo.errors import ConfigError
from octavo.server.settings import ServerSettings

log = logging.getLogger("octavo.server")

BACKLOG = 2048


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Take a port before anything else is done, so that one in use is found out at once. Port 0 is any free one.

    Args:
        shared: whether other servers that share it, too, may listen there.

    Raises:
        ConfigError: the address is in use, not ours, or not allowed.
    """
    host = _plain(host)
    listener = _tcp(host, shared=shared)
    return _listen(listener, (host, port), f"{host} port {port}", "choose another with --host and --port")


def bind_grpc(settings: ServerSettings, *, listen: bool) -> socket.socket | None:
    """Take the port for gRPC; None without one.

    Args:
        listen: whether there is something to serve. Without, clients are refused, and the port may be somebody else's:
            nothing is lost before a hosted model is loaded.

    Raises:
        ConfigError: the address is in use, not ours, or not allowed.
    """
    port = _grpc_port(settings)
    if port is None:
        return None
    host = _plain(settings.grpc_host or settings.host)
    listener, where = _tcp(host, shared=settings.reuse_grpc_port), f"{host} port {port} for gRPC"
    if listen:
        return _listen(listener, (host, port), where, "choose another with --grpc-port; 0 is none")
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        log.log(
            logging.INFO if settings.grpc_port is None else logging.WARNING,
            "cannot listen on %s: %s; models loaded later that gRPC would serve are served without it, unless another "
            "port is chosen with --grpc-port",
            where,
            getattr(error, "strerror", None) or error,
        )
        return None
    return listener


def bind_metrics(settings: ServerSettings, *, repository: bool) -> socket.socket | None:
    """Take the port for metrics alone; None without one.

    Args:
        repository: whether there is a repository of Triton's: who looks after it may look for metrics where Triton has
            them. If that port is taken, nothing is lost.

    Raises:
        ConfigError: the address was asked for, and is in use, not ours, or not allowed.
    """
    port, host = _metrics_port(settings, repository=repository), _plain(settings.metrics_host or settings.host)
    if port is None:
        return None
    where, remedy = f"{host} port {port} for metrics", "choose another with --metrics-port; 0 is none"
    try:
        return _listen(_tcp(host), (host, port), where, remedy)
    except ConfigError as error:
        if settings.metrics_port is not None:
            raise
        log.info("%s. They are at /metrics of --port", error)
        return None


def _grpc_port(settings: ServerSettings) -> int | None:
    """The port that is wanted; 0 is any free one."""
    if not settings.allow_grpc:
        return None
    if settings.grpc_port is not None:
        return settings.grpc_port or None
    if settings.uds is not None:
        return None
    return settings.port and settings.port + 1


def _metrics_port(settings: ServerSettings, *, repository: bool) -> int | None:
    """The port that is wanted; 0 is any free one."""
    if not settings.allow_metrics:
        return None
    if settings.metrics_port is not None:
        return settings.metrics_port or None
    if settings.uds is not None or not repository:
        return None
    return settings.port and settings.port + 2


def _plain(host: str) -> str:
    """An address without what Triton writes in front of it, and around one of IPv6."""
    return host.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("[").removesuffix("]")


def _tcp(host: str, *, shared: bool = False) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # A server may start while connections of the one before it linger.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return listener


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
    return f"http://{grpc_address_of(listener)}"


def grpc_address_of(listener: socket.socket) -> str:
    """What to tell clients of gRPC: host and port."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
