"""How the HTTP side of a server behaves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the HTTP side behaves.

    Attributes:
        api_keys: with any, every route but /health and /ready needs one of them.
        cors_origins: origins whose pages may call the server; none by default, `*` is all.
        max_body_bytes: longer request bodies are refused with 413.
        max_connections: open at once; None is what the limit on file descriptors allows. What comes beyond is refused
            with 503, after the connection that was idle for longest was closed for it.
        request_head_timeout: seconds for a request's head to arrive.
        request_body_timeout: seconds in which a request's body must go on by 16 KiB, or end.
        keep_alive_timeout: seconds that a connection may be idle between requests. The default is longer than clients
            keep idle connections: one that both sides give up at the same moment fails a request.
        ping_seconds: a comment is sent on streams that were silent for so long, so that proxies keep them; 0 is never.
        drain_seconds: how long requests may go on after the signal to stop.
        seed: of the seeds that requests without one get; None is different ones at every start.
    """

    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    max_connections: int | None = None
    request_head_timeout: float = 20.0
    request_body_timeout: float = 30.0
    keep_alive_timeout: int = 75
    ping_seconds: float = 15.0
    drain_seconds: float = 30.0
    seed: int | None = None
