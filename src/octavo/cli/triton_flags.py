"""Flags of Triton's that a start script may have, and that change nothing here: they are taken, and the log names them.

A flag that asks for something which is not done is refused, however little it may matter.
"""

from collections.abc import Callable, Mapping
from typing import Any

import click

_OFF, _ON = ("false", "0", "off"), ("true", "1", "on")

_NO_POOL = "no pool is needed"
_PINGS = "pings of clients are answered, however many, and the server sends none"
_NO_SAGEMAKER = "there is no port for SageMaker"
_NO_VERTEX = "there is no port for Vertex AI"
_NO_TLS = "gRPC is not encrypted"

WITHOUT_EFFECT: Mapping[str, str] = {
    "--enable-peer-access": "the runtimes decide it",
    "--http-thread-count": "--api-workers is how many processes speak HTTP",
    "--grpc-infer-allocation-pool-size": _NO_POOL,
    "--grpc-infer-response-compression-level": "answers over gRPC are not compressed",
    "--grpc-keepalive-time": _PINGS,
    "--grpc-keepalive-timeout": _PINGS,
    "--grpc-keepalive-permit-without-calls": _PINGS,
    "--grpc-http2-max-pings-without-data": _PINGS,
    "--grpc-http2-min-recv-ping-interval-without-data": _PINGS,
    "--grpc-http2-max-ping-strikes": _PINGS,
    "--grpc-server-cert": _NO_TLS,
    "--grpc-server-key": _NO_TLS,
    "--grpc-root-cert": _NO_TLS,
    "--sagemaker-port": _NO_SAGEMAKER,
    "--sagemaker-safe-port-range": _NO_SAGEMAKER,
    "--sagemaker-thread-count": _NO_SAGEMAKER,
    "--vertex-ai-port": _NO_VERTEX,
    "--vertex-ai-thread-count": _NO_VERTEX,
    "--vertex-ai-default-model": _NO_VERTEX,
    "--allow-gpu-metrics": "metrics of GPUs are those of their own exporter",
    "--metrics-interval-ms": "metrics are as they are when they are asked for",
    "--backend-directory": "backends are extras of Octavo's, such as octavo[onnx]",
    "--repoagent-directory": "there are no agents",
    "--cache-directory": "the one cache, local, is a part of the server",
    "--pinned-memory-pool-byte-size": _NO_POOL,
    "--cuda-memory-pool-byte-size": _NO_POOL,
    "--cuda-virtual-address-size": _NO_POOL,
    "--buffer-manager-thread-count": "no threads copy tensors",
    "--host-policy": "the system decides where processes run",
    "--min-supported-compute-capability": "the runtimes say which GPUs they can use",
}
"""Whatever their values; and why."""

HARMLESS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "--allow-http": (_ON.__contains__, "HTTP is always there; --http-address 127.0.0.1 keeps other machines from it"),
    "--model-namespacing": (
        _OFF.__contains__,
        "a model's name is in one repository; start a server for each of two that have the same",
    ),
    "--grpc-use-ssl": (_OFF.__contains__, f"{_NO_TLS}; put a proxy in front of it that is, such as Envoy or nginx"),
    "--grpc-use-ssl-mutual": (_OFF.__contains__, f"{_NO_TLS}; put a proxy in front of it that is, such as Envoy"),
    "--allow-sagemaker": (
        _OFF.__contains__,
        f"{_NO_SAGEMAKER}; a proxy can pass /invocations on to /v2/models/NAME/infer",
    ),
    "--allow-vertex-ai": (_OFF.__contains__, f"{_NO_VERTEX}; --http-port with AIP_HTTP_PORT's value is nearest to it"),
    "--metrics-config": (
        ("counter_latencies=true", "histogram_latencies=false", "summary_latencies=false").__contains__,
        "durations are counters, nv_inference_…_duration_us; rates of them are averages over time",
    ),
}
"""Flags that are taken with some values, and refused with others; and what to do instead."""

_KEY = "octavo.cli.triton_flags"


def triton_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Have a command take them. `given` says which were."""
    for flag in (*WITHOUT_EFFECT, *HARMLESS):
        name = flag.removeprefix("--").replace("-", "_")
        command = click.option(
            flag, f"triton_{name}", multiple=True, hidden=True, expose_value=False, type=str, callback=_take
        )(command)
    return command


def _take(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> None:
    flag = option.opts[0]
    for value in values:
        if flag in HARMLESS:
            is_harmless, instead = HARMLESS[flag]
            if not is_harmless(value.lower()):
                raise click.UsageError(f"{flag}={value} asks for what is not there: {instead}.")
    if values and flag in WITHOUT_EFFECT:
        context.meta.setdefault(_KEY, []).append(flag)


def without_effect() -> str:
    """What the log says of those that were given to the command that runs; empty if there are none."""
    given: list[str] = sorted(click.get_current_context().meta.get(_KEY, ()))
    return f"without effect here, as docs/from-triton.md says: {', '.join(given)}" if given else ""
