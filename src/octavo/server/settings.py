"""How a server behaves, whatever it serves."""

from dataclasses import dataclass, replace
from typing import Any

from octavo.deployments.trace_settings import Tracing, read_trace_config
from octavo.errors import ConfigError
from octavo.logs import DEFAULT, FORMATS, LogSettings
from octavo.server.cache_config import checked_size, read_cache_config
from octavo.server.forwarding import header_pattern
from octavo.server.hosts import is_origin, is_pattern
from octavo.server.keys import PRIORITIES, ApiKey, PriorityRange, clean_keys, read_key_file
from octavo.server.restrictions import Restrictions
from octavo.settings import LEVEL, QUANTITY, check, setting

MAX_SECONDS = 366 * 24 * 3600

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the HTTP side behaves.

    Attributes:
        keys: further API keys, with what is to be known of each.
    """

    host: str = setting("127.0.0.1", help="Address to listen on; 0.0.0.0 is all.", aliases=("--http-address",))
    port: int = setting(
        8000, help="Port to listen on; 0 is any free one.", least=0, most=65535, aliases=("--http-port",)
    )
    uds: str | None = setting(
        None, help="Path of a Unix socket, instead of host and port.", metavar="PATH", without="none"
    )
    grpc_port: int | None = setting(
        None,
        help="Port where hosted models are served over gRPC; 0 is none.",
        least=0,
        most=65535,
        without="the one after --port, and none with --uds",
    )
    grpc_host: str | None = setting(
        None, help="Address to listen on for gRPC.", aliases=("--grpc-address",), without="--host's"
    )
    metrics_port: int | None = setting(
        None,
        help="Port for metrics alone, besides /metrics of --port; 0 is none.",
        least=0,
        most=65535,
        without="the second after --port with a model repository, if it is free; else none",
    )
    metrics_host: str | None = setting(
        None, help="Address to listen on for metrics alone.", aliases=("--metrics-address",), without="--host's"
    )
    allow_grpc: bool = setting(True, help="Serve hosted models over gRPC, too.")
    allow_metrics: bool = setting(True, help="Tell metrics, at /metrics of --port and on --metrics-port.")
    allow_cpu_metrics: bool = setting(True, help="Tell metrics of the machine's processors and memory, too.")
    reuse_http_port: bool = setting(False, help="Let other servers that allow it, too, listen on the same port.")
    reuse_grpc_port: bool = setting(False, help="The same for the port for gRPC.")
    grpc_max_connection_age: int | None = setting(
        None,
        help="Milliseconds after which a connection for gRPC takes no more calls, so that clients spread anew.",
        least=1,
        most=MAX_SECONDS * 1000,
        without="any number",
    )
    grpc_max_connection_age_grace: int | None = setting(
        None,
        help="Milliseconds after which calls are given up that are not done by then.",
        least=0,
        most=MAX_SECONDS * 1000,
        without="any number",
    )
    http_header_forward_pattern: str | None = setting(
        None,
        help="Headers whose names have this regular expression in them are parameters of requests over HTTP.",
        metavar="REGEX",
        without="none are",
    )
    grpc_header_forward_pattern: str | None = setting(
        None, help="The same for requests over gRPC.", metavar="REGEX", without="none are"
    )
    http_restricted_api: tuple[str, ...] = setting(
        (),
        help="Parts of the protocol below /v2 that want a header, as PARTS:HEADER=VALUE, the parts with commas.",
        secret=True,
        metavar="RESTRICTION",
        without="none do",
    )
    grpc_restricted_protocol: tuple[str, ...] = setting(
        (),
        help="The same for gRPC, where the header is triton-grpc-protocol-HEADER.",
        secret=True,
        metavar="RESTRICTION",
        without="none do",
    )
    server_id: str = setting("octavo", help="What the server calls itself at /v2.", metavar="NAME", aliases=("--id",))
    api_key: tuple[str, ...] = setting(
        (),
        help="Required from clients on every route but /health and /ready; repeat it for more keys.",
        secret=True,
        metavar="KEY",
        without="none is required",
    )
    api_key_file: str | None = setting(
        None,
        help="A file with further keys, one a line; blank lines and lines that begin with # do not count.",
        metavar="PATH",
        without="none",
    )
    priorities: PriorityRange = setting(
        PriorityRange(0, 2**31 - 1),
        help="The priorities that clients may ask for, as LOWEST:HIGHEST; lower numbers run first.",
        kind=PRIORITIES,
    )
    admin_api_key: tuple[str, ...] = setting(
        (),
        help="Opens /admin, and nothing else; without one /admin does not exist.",
        secret=True,
        metavar="KEY",
        without="none",
    )
    admin_api_key_file: str | None = setting(
        None, help="A file with further keys that open /admin, one a line.", metavar="PATH", without="none"
    )
    allowed_origins: tuple[str, ...] = setting(
        (), help="Web origins whose pages may call the server (CORS); * is all.", metavar="ORIGIN", without="none"
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        help="Names under which clients may call the server, besides addresses; *.NAME is all below one, * is all.",
        metavar="NAME",
        without="on a loopback address this machine's names, elsewhere all",
    )
    seed: int | None = setting(
        None,
        help="Makes requests without a seed of their own repeatable from start to start.",
        least=-(2**63),
        most=2**63 - 1,
        without="another one at every start",
    )
    max_body_bytes: int = setting(
        16 * 2**20, help="Longer request bodies are refused.", kind=QUANTITY, least=1, most=2**40
    )
    max_tensor_body_bytes: int = setting(
        64 * 2**20,
        help="Longer request bodies are refused where they have tensors (/v2, and models that take tensors).",
        kind=QUANTITY,
        least=1,
        most=2**40,
        aliases=("--http-max-input-size",),
    )
    allow_client_shm: bool = setting(
        False, help="Let clients on this machine pass tensors in shared memory that they have made."
    )
    max_connections: int | None = setting(
        None,
        help="Connections open at once; one beyond closes the one that was idle for longest, or is refused with 503.",
        least=1,
        most=2**31,
        without="what the limit on file descriptors allows",
    )
    request_head_timeout: float = setting(
        20.0, help="Seconds for a request's head to arrive.", above=0, most=MAX_SECONDS
    )
    request_body_timeout: float = setting(
        30.0, help="Seconds in which a request's body must go on by 16 KiB, or end.", above=0, most=MAX_SECONDS
    )
    # Longer than clients keep idle connections: one that both sides give up at the same moment fails a request.
    keep_alive_timeout: int = setting(
        75, help="Seconds that a connection may be idle between requests.", least=1, most=MAX_SECONDS
    )
    sse_keep_alive_interval: float = setting(
        15.0,
        help="Seconds of silence on a stream after which a comment is sent, so that proxies keep it; 0 is never.",
        least=0,
        most=MAX_SECONDS,
    )
    shutdown_timeout: float = setting(
        30.0,
        help="Seconds that requests in flight may go on after the signal to stop.",
        least=0,
        most=MAX_SECONDS,
        aliases=("--exit-timeout-secs",),
    )
    api_workers: int = setting(1, help="Processes that speak HTTP, all of them on the one address.", least=1, most=256)
    cache_config: tuple[str, ...] = setting(
        (),
        help="Where answers of models with response_cache are kept, as local,size=BYTES.",
        metavar="local,size=BYTES",
        without="nowhere",
    )
    response_cache_byte_size: int | None = setting(
        None,
        help="Triton's older way to say --cache-config local,size=BYTES.",
        kind=QUANTITY,
        least=0,
        without="see cache_config",
    )
    store: str | None = setting(
        None,
        help="Path of the database of responses (/v1/responses), which outlives the server; made if it is not there.",
        metavar="PATH",
        without="in memory",
    )
    store_max_responses: int = setting(
        10_000, help="Responses that are stored; beyond them the one goes that was not used for longest.", least=1
    )
    store_max_bytes: int = setting(
        256 * 2**20, help="Bytes of all stored responses together.", kind=QUANTITY, least=1, most=2**50
    )
    store_max_age: int = setting(
        30 * 24 * 3600, help="Seconds after which a stored response is gone.", least=1, most=MAX_SECONDS
    )
    strict_readiness: bool = setting(
        True, help="Be ready only if all models of repositories are, but for those that clients have unloaded."
    )
    log_level: str = setting("info", help="What is logged, and whatever is more important.", choices=LOG_LEVELS)
    log_verbose: int | None = setting(
        None,
        help="Log what is of interest to who looks for a fault: 1 or more for yes, 0 for no.",
        kind=LEVEL,
        least=0,
        most=2**31 - 1,
        without="as --log-level says",
    )
    log_info: bool | None = setting(
        None, help="Log what is usual.", metavar="true|false", without="as --log-level says"
    )
    log_warning: bool | None = setting(None, help="Log warnings.", metavar="true|false", without="as --log-level says")
    log_error: bool | None = setting(None, help="Log errors.", metavar="true|false", without="true")
    log_format: str = setting(
        DEFAULT, help="Of lines of the log; ISO8601 is Triton's format of that name.", choices=FORMATS
    )
    log_file: str | None = setting(
        None, help="A file for the log, which goes on there if there is one.", metavar="PATH", without="standard error"
    )
    trace_config: tuple[str, ...] = setting(
        (),
        help="Which requests of Triton's clients are traced, and where that is written: triton,file=PATH, "
        "triton,log-frequency=N, level=TIMESTAMPS or TENSORS, rate=N, count=N; repeat it for more.",
        metavar="SETTING",
        without="none is",
    )
    keys: tuple[ApiKey, ...] = ()

    def validate(self) -> None:
        """Check every setting. Raises ConfigError."""
        check(self)
        read_trace_config(self.trace_config)
        for name in ("http_header_forward_pattern", "grpc_header_forward_pattern"):
            header_pattern(getattr(self, name), name)
        for name in ("http_restricted_api", "grpc_restricted_protocol"):
            Restrictions(getattr(self, name), name)
        for host in self.allowed_hosts:
            if not is_pattern(host):
                raise ConfigError(
                    f"allowed_hosts has {host!r}; write a name alone, such as example.com or *.example.com",
                    "allowed_hosts",
                )
        for origin in self.allowed_origins:
            if not is_origin(origin):
                raise ConfigError(
                    f"allowed_origins has {origin!r}; write an origin as browsers send it, such as "
                    "https://app.example.com or http://localhost:3000, or * for all",
                    "allowed_origins",
                )
        if self.allow_client_shm and self.api_workers > 1:
            raise ConfigError(
                f"allow_client_shm works with one process that speaks HTTP, and api_workers is {self.api_workers}: a "
                "region is registered with one of them, and used by another",
                "allow_client_shm",
                "api_workers",
            )
        if self.cache_config and self.response_cache_byte_size is not None:
            raise ConfigError(
                "cache_config and response_cache_byte_size say the same; give one of them",
                "cache_config",
                "response_cache_byte_size",
            )
        _ = self.cache_bytes
        names: dict[str, str] = {}
        for key in self.client_keys:
            if (name := names.setdefault(key.key, key.name)) != key.name:
                both = " and ".join(f"keys.{each}" if each else "api_key" for each in (name, key.name))
                raise ConfigError(f"{both} have the same key; give each its own")
        if set(self.admin_api_key) & {key.key for key in self.client_keys}:
            raise ConfigError("an admin API key is an API key, too; it must be another one", "admin_api_key", "api_key")

    @property
    def logging(self) -> LogSettings:
        """What is logged, and how."""
        lowest = LOG_LEVELS.index(self.log_level)
        return LogSettings(
            info=lowest <= LOG_LEVELS.index("info") if self.log_info is None else self.log_info,
            warning=lowest <= LOG_LEVELS.index("warning") if self.log_warning is None else self.log_warning,
            error=self.log_error is not False,
            verbose=int(lowest == 0) if self.log_verbose is None else self.log_verbose,
            format=self.log_format,
            file=self.log_file or "",
        )

    @property
    def cache_bytes(self) -> int:
        """Of the cache of answers; 0 for none. Raises ConfigError: there can be no such cache."""
        if self.response_cache_byte_size is not None:
            return checked_size(self.response_cache_byte_size, "response_cache_byte_size")
        return read_cache_config(self.cache_config)

    @property
    def tracing(self) -> Tracing:
        """Which requests are traced, at the start."""
        return read_trace_config(self.trace_config)

    @property
    def client_keys(self) -> tuple[ApiKey, ...]:
        """The keys that open everything but the administration."""
        return (*(ApiKey(key=key) for key in self.api_key), *self.keys)

    @property
    def admin_keys(self) -> tuple[ApiKey, ...]:
        """The keys that open the administration."""
        return tuple(ApiKey(key=key) for key in self.admin_api_key)

    def with_keys(self) -> "ServerSettings":
        """The same settings with the keys that files hold read. Raises ConfigError."""
        changes: dict[str, Any] = {}
        for name in ("api_key", "admin_api_key"):
            file = getattr(self, f"{name}_file")
            keys = clean_keys(getattr(self, name), name)
            changes[name] = (*keys, *(read_key_file(file, f"{name}_file") if file is not None else ()))
            changes[f"{name}_file"] = None
        return replace(self, **changes)
