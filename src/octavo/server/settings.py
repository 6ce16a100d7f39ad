"""How the HTTP side of a server behaves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the HTTP side behaves.

    Attributes:
        api_keys: with any, every route but /health and /ready needs one of them.
        cors_origins: origins whose pages may call the server; none by default, `*` is all.
        max_body_bytes: longer request bodies are refused with 413.
        ping_seconds: a comment is sent on streams that were silent for so long, so that proxies keep them; 0 is never.
        drain_seconds: how long requests may go on after the signal to stop.
        seed: of the seeds that requests without one get; None is different ones at every start.
    """

    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    ping_seconds: float = 15.0
    drain_seconds: float = 30.0
    seed: int | None = None
