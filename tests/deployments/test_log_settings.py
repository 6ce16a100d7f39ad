"""How a server logs, as its operator says and as clients change it: with all processes, over HTTP and gRPC."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.deployments.test_repository import Server, eventually, serving

TALKS = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for level in ("info", "warn", "error", "verbose"):
            getattr(pb_utils.Logger, f"log_{level}")(f"the model says {level}")
        return [pb_utils.InferenceResponse(request.inputs()) for request in requests]
"""

CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "x" data_type: TYPE_INT32 dims: 1 }
"""

USUAL = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root: Path = tmp_path_factory.mktemp("repository")
    (root / "talks" / "1").mkdir(parents=True)
    (root / "talks" / "1" / "model.py").write_text(TALKS)
    (root / "talks" / "config.pbtxt").write_text(CONFIG)
    with serving(root, "--api-workers", "2", "--log-warning=true", "--log-verbose", "false") as started:
        yield started


@pytest.fixture
def http(server: Server) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client
        client.update_log_settings({name: value for name, value in USUAL.items() if name != "log_file"})


@pytest.fixture(scope="module")
def grpc(server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        yield client


def spoken(server: Server, *expected: str) -> list[str]:
    """The model's lines that come of a request, once those are there that are expected."""
    before = len(server.said)
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}]}
    assert httpx.post(f"{server.url}/v2/models/talks/infer", json=body).status_code == 200
    last = f"the model says {expected[-1]}"
    eventually(lambda: any(last in line for line in server.said[before:]))
    lines = [line for line in server.said[before:] if "the model says" in line]
    assert [line.rpartition("says ")[2].strip() for line in lines] == list(expected)
    return lines


def everywhere(server: Server) -> Iterator[Any]:
    """What connections of their own are told, some of which each frontend has."""
    for _ in range(8):
        yield httpx.get(f"{server.url}/v2/logging").json()


def test_settings_are_changed_in_all_processes(server: Server, http: triton_http.InferenceServerClient) -> None:
    assert http.get_log_settings() == USUAL
    lines = spoken(server, "info", "warn", "error")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO talks v1: the model says info\n", lines[0])
    changed = USUAL | {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}
    assert http.update_log_settings({"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}) == changed
    assert all(found == changed for found in everywhere(server))
    lines = spoken(server, "warn", "error", "verbose")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ W \d+ talks v1: the model says warn\n", lines[0])
    http.update_log_settings({"log_error": False, "log_verbose_level": 0, "log_format": "default"})
    spoken(server, "warn")
    http.update_log_settings({"log_info": True})
    spoken(server, "info", "warn")
    eventually(lambda: sum("/infer" in line for line in server.said) >= 2)
    assert sum("/infer" in line for line in server.said) == 2, "only those are that came with log_info"


def test_grpc_changes_them_too(
    server: Server, http: triton_http.InferenceServerClient, grpc: triton_grpc.InferenceServerClient
) -> None:
    found = grpc.update_log_settings({"log_warning": False, "log_verbose_level": 1}, as_json=True)["settings"]
    assert found["log_warning"] == {"bool_param": False}
    assert found["log_verbose_level"] == {"uint32_param": 1}
    assert grpc.get_log_settings(as_json=True)["settings"] == found
    assert http.get_log_settings() == USUAL | {"log_warning": False, "log_verbose_level": 1}
    grpc.update_log_settings({"log_info": None})
    spoken(server, "info", "error", "verbose")


@pytest.mark.parametrize(
    ("setting", "value", "status", "message"),
    [
        ("log_info", "yes", 400, "attempt to access JSON non-boolean as boolean: log_info is 'yes'"),
        ("log_error", 1, 400, "attempt to access JSON non-boolean as boolean: log_error is 1"),
        ("log_verbose_level", True, 400, "non-unsigned-integer as unsigned-integer: log_verbose_level is True"),
        ("log_verbose_level", -1, 400, "non-unsigned-integer as unsigned-integer: log_verbose_level is -1"),
        ("log_verbose_level", 2**32, 400, "log_verbose_level is 4294967296"),
        ("log_format", 3, 400, "attempt to access JSON non-string as string: log_format is 3"),
        ("log_format", "json", 400, "invalid argument for log_format, got: json; give default or ISO8601"),
        ("log_file", "/tmp/octavo.log", 501, "log file location can not be updated through network protocol"),
        ("log_colour", "red", 400, "Attempting to set invalid log setting 'log_colour'; give log_error, log_file"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_nothing_is_changed(
    server: Server, setting: str, value: object, status: int, message: str
) -> None:
    answer = httpx.post(f"{server.url}/v2/logging", json={"log_warning": False, setting: value})
    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert httpx.get(f"{server.url}/v2/logging").json() == USUAL


def test_grpc_refuses_as_well(grpc: triton_grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="log file location can not be updated") as raised:
        grpc.update_log_settings({"log_file": "/tmp/octavo.log"})
    assert raised.value.status() == "StatusCode.UNIMPLEMENTED"


def test_an_operator_says_them_with_flags_and_may_name_a_file(server: Server, tmp_path: Path) -> None:
    from tests.cli.command import octavo_process

    root, file = tmp_path / "repository", tmp_path / "octavo.log"
    (root / "broken" / "1").mkdir(parents=True)
    file.write_text("what there was\n")
    log = f"--log-file={file} --log-format=ISO8601 --log-info=false --log-error=true".split()
    command = ["serve", "--model-repository", str(root), "--exit-on-error", "--port", "0"]
    result = octavo_process(*command, *log)
    assert result.returncode == 1
    assert "failed to load all models" in result.stderr, "what the command ends with is on the terminal"
    assert "model broken cannot be loaded" not in result.stderr
    lines = file.read_text().splitlines()
    assert lines[0] == "what there was"
    assert re.fullmatch(r"\S+T\S+Z E \d+ model broken cannot be loaded: .*", lines[1])
    assert len(lines) == 2, "those of the level INFO are not wanted"
    result = octavo_process(*command, "--log-file", str(tmp_path / "none" / "octavo.log"))
    assert f"cannot write the log to {tmp_path}/none/octavo.log: No such file or directory" in result.stderr
