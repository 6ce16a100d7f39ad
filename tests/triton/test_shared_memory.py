"""System shared memory: what can be registered, used and said of it."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm

from tests.triton.comparing import INFER, Both, say_the_same
from tests.triton.servers import Served


@pytest.fixture
def key() -> Iterator[str]:
    """A region of 64 bytes: 0 to 15."""
    name = f"/compared-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("r", name, 64)
    shm.set_shared_memory_region(handle, [np.arange(16, dtype=np.int32)])
    yield name
    shm.destroy_shared_memory_region(handle)


def register(server: Served, body: Any, region: str = "r") -> httpx.Response:
    return server.ask("POST", f"/v2/systemsharedmemory/region/{region}/register", json=body)


def unregister(server: Served, region: str = "") -> httpx.Response:
    where = f"region/{region}/" if region else ""
    return server.ask("POST", f"/v2/systemsharedmemory/{where}unregister")


@pytest.mark.parametrize("library", [triton_http, triton_grpc])
def test_tensors_there_and_back(both: Both, key: str, library: Any) -> None:
    found = []
    for server in both:
        with library.InferenceServerClient(server.grpc if library is triton_grpc else server.http) as client:
            client.register_system_shared_memory("r", key, 64)
            given = library.InferInput("IN_INT32", [4], "INT32")
            given.set_shared_memory("r", 16, offset=8)
            wanted = library.InferRequestedOutput("OUT_INT32")
            wanted.set_shared_memory("r", 24, offset=40)
            answer = client.infer("types", [given], outputs=[wanted])
            output = answer.get_output("OUT_INT32")
            described = output if isinstance(output, dict) else str(output)
            written = np.frombuffer((Path("/dev/shm") / key[1:]).read_bytes(), np.int32)[10:14]
            found.append((described, written.tolist(), str(client.get_system_shared_memory_status())))
            client.unregister_system_shared_memory("r")
    assert found[0] == found[1]
    assert found[0][1] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "change",
    [
        {"key": "/that-is-not-there"},
        {"key": ""},
        {"key": 3},
        {"byte_size": "64"},
        {"byte_size": 65},
        {"offset": 1},
        {"byte_size": None},
        {"key": None},
    ],
)
def test_what_is_no_region(both: Both, key: str, change: dict[str, Any]) -> None:
    whole = {"key": key, "offset": 0, "byte_size": 64, **change}
    sent = {name: each for name, each in whole.items() if each is not None}
    ours, theirs = (register(each, sent) for each in both)
    assert ours.status_code == 400
    if theirs.is_success:
        unregister(both[1], "r")
    elif change not in ({"key": ""}, {"key": 3}, {"byte_size": "64"}):  # Octavo says which field it is
        assert say_the_same(ours.json()["error"], theirs.json()["error"])


def test_regions_are_registered_once(both: Both, key: str) -> None:
    body = {"key": key, "offset": 0, "byte_size": 64}
    for server in both:
        assert register(server, body).status_code == 200
    ours, theirs = (register(each, body) for each in both)
    assert say_the_same(ours.json()["error"], theirs.json()["error"])
    assert ours.status_code == theirs.status_code == 400
    for path in ("status", "region/r/status", "region/other/status"):
        ours, theirs = (each.ask("GET", f"/v2/systemsharedmemory/{path}") for each in both)
        assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())
    for region in ("other", "r", ""):
        ours, theirs = (unregister(each, region) for each in both)
        assert (ours.status_code, ours.text) == (theirs.status_code, theirs.text) == (200, "")


PLACES: dict[str, dict[str, Any]] = {
    "another region": {"shared_memory_region": "other", "shared_memory_byte_size": 4},
    "no size": {"shared_memory_region": "r"},
    "too few bytes": {"shared_memory_region": "r", "shared_memory_byte_size": 3},
    "too many bytes": {"shared_memory_region": "r", "shared_memory_byte_size": 8},
    "beyond its end": {"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": 64},
    "across its end": {"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": 61},
    "a size that overflows": {
        "shared_memory_region": "r",
        "shared_memory_byte_size": 2**63,
        "shared_memory_offset": 2**63,
    },
    "a negative offset": {"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": -1},
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_not_there(both: Both, key: str, name: str) -> None:
    found = []
    for server in both:
        register(server, {"key": key, "offset": 0, "byte_size": 64})
        given = {"name": "IN", "datatype": "INT32", "shape": [1], "parameters": PLACES[name]}
        found.append(server.ask("POST", INFER.format("errors"), json={"inputs": [given]}))
        unregister(server, "r")
    ours, theirs = found
    assert ours.status_code in (400, 404)
    assert theirs.status_code in (ours.status_code, 500)
    if name != "no size":  # which is one of 0 bytes here
        assert say_the_same(ours.json()["error"], theirs.json()["error"])


def test_outputs_that_have_no_room(both: Both, key: str) -> None:
    found = []
    for server in both:
        register(server, {"key": key, "offset": 0, "byte_size": 64})
        wanted = {"name": "OUT_INT32", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}}
        given = {"name": "IN_INT32", "datatype": "INT32", "shape": [2], "data": [1, 2]}
        found.append(server.ask("POST", INFER.format("types"), json={"inputs": [given], "outputs": [wanted]}))
        unregister(server, "r")
    ours, theirs = found
    assert ours.status_code == 400
    assert theirs.is_error
    assert os.path.exists(f"/dev/shm{key}")
