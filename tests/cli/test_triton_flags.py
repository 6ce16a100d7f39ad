"""Command lines of Triton's: what is taken, what is noted, and what is refused."""

import shlex
from pathlib import Path

import click
import pytest

from octavo.cli.configuration import SERVE_SETTINGS
from octavo.cli.foreign import FOREIGN_FLAGS
from octavo.cli.main import app
from octavo.cli.triton_flags import HARMLESS, WITHOUT_EFFECT
from octavo.errors import ConfigError
from tests.cli.command import octavo

TRITON = shlex.split("""
--id=mine --exit-timeout-secs=30 --log-verbose=0 --log-info=true --log-warning=true --log-error=true
--log-format=default --log-file=/tmp/triton.log --model-repository=. --exit-on-error=false
--disable-auto-complete-config --strict-readiness=true --model-control-mode=explicit --repository-poll-secs=15
--load-model=* --model-config-name=h100 --model-load-thread-count=4 --model-load-retry-count=0
--model-namespacing=false --enable-peer-access=true --allow-http=true --http-address=0.0.0.0 --http-port=8000
--reuse-http-port=false --http-header-forward-pattern=my_.* --http-thread-count=8
--http-restricted-api=trace,logging:key=value --allow-grpc=true --grpc-address=0.0.0.0 --grpc-port=8001
--reuse-grpc-port=false --grpc-header-forward-pattern=my_.* --grpc-infer-allocation-pool-size=8
--grpc-use-ssl=false --grpc-use-ssl-mutual=false --grpc-server-cert=cert.pem --grpc-server-key=key.pem
--grpc-root-cert=root.pem --grpc-infer-response-compression-level=none --grpc-keepalive-time=7200000
--grpc-keepalive-timeout=20000 --grpc-keepalive-permit-without-calls=false
--grpc-http2-max-pings-without-data=2 --grpc-http2-min-recv-ping-interval-without-data=300000
--grpc-http2-max-ping-strikes=2 --grpc-max-connection-age=60000 --grpc-max-connection-age-grace=1000
--grpc-restricted-protocol=health,inference:key=value --allow-sagemaker=false --sagemaker-port=8080
--sagemaker-safe-port-range=1-2 --sagemaker-thread-count=8 --allow-vertex-ai=false --vertex-ai-port=8080
--vertex-ai-thread-count=8 --vertex-ai-default-model=mine --allow-metrics=true --allow-gpu-metrics=true
--allow-cpu-metrics=true --metrics-address=0.0.0.0 --metrics-port=8002 --metrics-interval-ms=2000
--metrics-config=counter_latencies=true --trace-config=level=OFF --backend-directory=/opt/backends
--backend-config=python,shm-default-byte-size=1048576 --repoagent-directory=/opt/repoagents
--cache-config=local,size=1048576 --cache-directory=/opt/caches --pinned-memory-pool-byte-size=268435456
--cuda-memory-pool-byte-size=0:67108864 --cuda-virtual-address-size=0:1073741824
--min-supported-compute-capability=6.0 --buffer-manager-thread-count=0 --host-policy=one,numa-node=0
--strict-model-config=false
""")
"""Each of 2.51's, with what most start scripts have."""

REFUSED = ("--trace-file", "--trace-level", "--trace-rate", "--trace-count", "--trace-log-frequency")
"""Deprecated in Triton, too."""

LATER = (
    "--model-store",
    "--response-cache-byte-size",
    "--rate-limit",
    "--rate-limit-resource",
    "--http-max-input-size",
)
"""What cannot be given beside these, or came later."""


def test_a_command_line_with_all_of_them_is_taken() -> None:
    result = octavo("config", "show", *TRITON)
    assert result.returncode == 0, result.stderr
    [noted] = [line for line in result.stderr.splitlines() if "without effect here" in line]
    given = {each.partition("=")[0] for each in TRITON}
    assert noted.rpartition(": ")[2] == ", ".join(sorted(given & WITHOUT_EFFECT.keys()))
    assert noted.count("--") == len(given & WITHOUT_EFFECT.keys())
    for line in ('host = "0.0.0.0"', "metrics_port = 8002", 'server_id = "mine"', "grpc_max_connection_age = 60000"):
        assert any(each.startswith(f"{line}  # ") for each in result.stdout.splitlines())
    assert "value" not in result.stdout.partition("http_restricted_api")[2].split("\n")[0].replace("not shown", "")


def test_each_is_decided_about_and_in_the_documentation() -> None:
    known = {flag for each in SERVE_SETTINGS.values() for flag in each.flags}
    page = Path(__file__).parents[2].joinpath("docs/from-triton.md").read_text()
    for flag in (*(each.partition("=")[0] for each in TRITON), *REFUSED, *LATER):
        assert (flag in known) + (flag in WITHOUT_EFFECT) + (flag in HARMLESS) + (flag in FOREIGN_FLAGS) == 1, flag
        assert f"`{flag}" in page, flag
    assert not [flag for flag in (*WITHOUT_EFFECT, *HARMLESS) if f"`{flag}" not in page]


def refusal(*arguments: str) -> str:
    with pytest.raises((click.ClickException, ConfigError)) as caught:
        app.main(["config", "show", *arguments], standalone_mode=False)
    error = caught.value
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--allow-http=false", "HTTP is always there; --http-address 127.0.0.1"),
        ("--model-namespacing=true", "start a server for each"),
        ("--grpc-use-ssl=1", "put a proxy in front of it"),
        ("--grpc-use-ssl-mutual=true", "put a proxy in front of it"),
        ("--allow-sagemaker=true", "a proxy can pass /invocations on"),
        ("--allow-vertex-ai=true", "--http-port with AIP_HTTP_PORT's value"),
        ("--metrics-config=summary_latencies=true", "durations are counters"),
        ("--backend-config=tensorflow,version=1", "which is not done; default-max-batch-size can be set"),
        ("--backend-config=python", "must be BACKEND,SETTING=VALUE"),
        ("--backend-config=default-max-batch-size=0", "a whole number from 1 to 1,048,576"),
        ("--http-header-forward-pattern=(", "is no regular expression"),
        ("--http-restricted-api=trace", "a header and its value"),
        ("--grpc-restricted-protocol=trace,traces:a=b", "has 'traces'; there are health"),
        ("--grpc-restricted-protocol=trace,trace:a=b", "has trace twice"),
        ("--metrics-port=x", "metrics_port is 'x'"),
    ],
)
def test_what_asks_for_more_is_refused(flag: str, words: str) -> None:
    assert words in refusal(flag, "model")


def test_repositories_of_other_machines_are_refused() -> None:
    from octavo.deployments.repository_settings import RepositorySettings

    with pytest.raises(ConfigError, match="s3://bucket/models is not on this machine; fetch it first, or mount it"):
        _ = RepositorySettings(model_repository=("s3://bucket/models",)).places
