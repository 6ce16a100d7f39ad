"""Repositories in the hands of clients: the index, loading, unloading, and configurations of a request's own."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.triton.comparing import Both, ask, asks, say_the_same, tensor
from tests.triton.repository import FOLDERS, make_repository
from tests.triton.servers import Served, serving

FLAGS = ("--model-control-mode=explicit", "--load-model=add_sub", "--load-model=ensemble", "--load-model=errors")


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Octavo and Triton, each with a repository of its own."""
    with ExitStack() as started:
        found = []
        for name in ("octavo", "triton"):
            models = make_repository(tmp_path_factory.mktemp("models"))
            found.append(started.enter_context(serving(name, models, tmp_path_factory.mktemp(name), *FLAGS)))
        yield found[0], found[1]


def post(server: Served, path: str, body: Any = None) -> httpx.Response:
    return server.ask("POST", f"/v2/repository/{path}", json={} if body is None else body)


def index(server: Served, *, ready: bool = False) -> list[tuple[str, str, str]]:
    found = post(server, "index", {"ready": ready}).json()
    return sorted((each["name"], each.get("version", ""), each.get("state", "")) for each in found)


def settled(server: Served, model: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while not any(each[0] == model and each[2] == state for each in index(server)):
        assert time.monotonic() < deadline, index(server)
        time.sleep(0.05)


def test_the_index(explicit: Both) -> None:
    ours, theirs = map(index, explicit)
    assert ours == theirs
    ours, theirs = (index(each, ready=True) for each in explicit)
    assert ours == theirs
    assert {name for name, *_ in ours} == {"add_sub", "ensemble", "errors"}


def test_loading_and_unloading(explicit: Both) -> None:
    for way, state in (("load", "READY"), ("load", "READY"), ("unload", "UNAVAILABLE")):
        ours, theirs = (post(each, f"models/upper/{way}") for each in explicit)
        assert (ours.status_code, ours.text) == (theirs.status_code, theirs.text) == (200, "")
        for server in explicit:
            settled(server, "upper", state)
        assert index(explicit[0]) == index(explicit[1])
    asked = asks("upper", tensor("TEXT", "BYTES", [1], ["a"]))
    ours, theirs = (ask(each, asked) for each in explicit)
    assert say_the_same(ours.json()["error"], theirs.json()["error"])
    assert ours.status_code == theirs.status_code


CANNOT: dict[str, tuple[str, Any]] = {
    "nothing": ("models/nothing/load", {}),
    "a configuration that is no JSON": ("models/errors/load", {"parameters": {"config": "{"}}),
    "an unknown field": ("models/errors/load", {"parameters": {"config": '{"max_batch_sise": 3}'}}),
    "a field of another type": ("models/errors/load", {"parameters": {"config": '{"max_batch_size": "x"}'}}),
    "a configuration that does not fit": (
        "models/errors/load",
        {"parameters": {"config": '{"backend": "python", "max_batch_size": -1}'}},
    ),
    "a model that cannot be imported": ("models/broken/load", {}),
    "a configuration that is no text": ("models/errors/load", {"parameters": {"config": 3}}),
    "a file without a configuration": ("models/errors/load", {"parameters": {"file:1/model.py": "AAAA"}}),
    "a file that is no text": ("models/errors/load", {"parameters": {"file:1/model.py": 3}}),
    "an unknown parameter": ("models/errors/load", {"parameters": {"other": "3"}}),
    "parameters that are none": ("models/errors/load", {"parameters": 3}),
    "no truth value": ("index", {"ready": "x"}),
}

OWN_WORDS = {
    "a model that cannot be imported": "Triton has Python's traceback",
    "a configuration that is no text": "Octavo names the parameter, and so below",
    "a file without a configuration": "",
    "a file that is no text": "",
    "an unknown parameter": "",
    "parameters that are none": "",
    "no truth value": "",
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_loaded(explicit: Both, name: str) -> None:
    ours, theirs = (post(each, *CANNOT[name]) for each in explicit)
    assert ours.status_code == 400
    assert theirs.is_error
    assert name in OWN_WORDS or say_the_same(ours.json()["error"], theirs.json()["error"])
    answers = [ask(each, asks("errors", tensor("IN", "INT32", [1], [7]))) for each in explicit]
    assert [each.status_code for each in answers] == [200, 200]  # what was served is served still


def test_what_is_not_there_need_not_be_unloaded(explicit: Both) -> None:
    ours, theirs = (post(each, "models/nothing/unload") for each in explicit)
    assert (ours.status_code, ours.text) == (theirs.status_code, theirs.text) == (200, "")


UPPER = {
    "backend": "python",
    "input": [{"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1]}],
    "output": [{"name": "UPPER", "data_type": "TYPE_STRING", "dims": [1]}],
}


def test_a_configuration_of_the_request_s_own(explicit: Both) -> None:
    config = UPPER | {"max_batch_size": 5, "parameters": {"greeting": {"string_value": "hello"}}}
    for server in explicit:
        assert post(server, "models/upper/load", {"parameters": {"config": json.dumps(config)}}).status_code == 200
    ours, theirs = (each.ask("GET", "/v2/models/upper/config").json() for each in explicit)
    assert ours == theirs
    assert ours["max_batch_size"] == 5
    asked = asks("upper", tensor("TEXT", "BYTES", [2, 1], ["a", "b"]))
    ours, theirs = (ask(each, asked).json() for each in explicit)
    assert ours == theirs
    assert post(explicit[0], "models/upper/load").status_code == 200
    # Without one the file's is back. In Triton it is not, until something changes there.
    assert explicit[0].ask("GET", "/v2/models/upper/config").json()["max_batch_size"] == 0


def test_files_of_the_request_s_own(explicit: Both) -> None:
    code = (FOLDERS / "upper" / "1" / "model.py").read_text().replace("each.upper()", "each[::-1]")
    sent = {"config": json.dumps(UPPER), "file:7/model.py": base64.b64encode(code.encode()).decode()}
    asked = asks("sent", tensor("TEXT", "BYTES", [1], ["abc"]))
    found = []
    for server in explicit:
        loaded = post(server, "models/sent/load", {"parameters": sent})
        assert loaded.status_code == 200, loaded.text
        found.append(ask(server, asked).json())
    assert found[0] == found[1]
    assert (found[0]["model_version"], found[0]["outputs"][0]["data"]) == ("7", ["cba"])
    assert ("sent", "7", "READY") in index(explicit[0])  # of which Triton's says nothing: it has no folder


def test_ensembles_and_the_models_that_they_ask(explicit: Both) -> None:
    for server in explicit:  # a client may have loaded it itself
        post(server, "models/upper/unload")
    unload = {"parameters": {"unload_dependents": True}}
    for path, body in (
        ("models/says_upper/load", {}),  # and what it asks
        ("models/says_upper/unload", {}),
        ("models/says_upper/load", {}),
        ("models/says_upper/unload", unload),
        ("models/says/load", {}),
        ("models/says_upper/load", {}),
        ("models/says_upper/unload", unload),  # but for what a client has loaded itself
        ("models/says_upper/load", {}),
        ("models/upper/unload", {}),
        ("models/says_upper/load", {}),
    ):
        found = []
        for server in explicit:
            assert post(server, path, body).status_code == 200
            settled(server, path.split("/")[1], "READY" if path.endswith("/load") else "UNAVAILABLE")
            if body == unload:
                settled(server, "upper", "UNAVAILABLE")
            found.append([each for each in index(server) if each[0] in ("says", "upper", "says_upper")])
        assert found[0] == found[1], path


def test_an_ensemble_that_lacks_a_model(explicit: Both) -> None:
    for server in explicit:
        assert post(server, "models/add_sub/unload").status_code == 200
        settled(server, "add_sub", "UNAVAILABLE")
    x, y = (tensor(name, "FP32", [1, 4], [1, 2, 3, 4]) for name in "XY")
    ours, theirs = (ask(each, asks("ensemble", x, y)) for each in explicit)
    assert "depends on 'add_sub' which has no loaded version" in ours.json()["error"]
    assert (ours.status_code, theirs.status_code) == (503, 404)  # it is there again once the model is
    for server in explicit:
        assert post(server, "models/add_sub/load").status_code == 200
        settled(server, "ensemble", "READY")
