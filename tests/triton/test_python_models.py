"""Python models: shapes that they get, and what they ask of others."""

import concurrent.futures
import json
import math
from typing import Any

import httpx
import pytest

from tests.triton.comparing import Both, ask, asks, say_the_same, seen, tensor
from tests.triton.servers import Served


def said(server: Served, act: str) -> Any:
    answer = ask(server, asks("asks", tensor("ACT", "BYTES", [1], [act])))
    return json.loads(answer.json()["outputs"][0]["data"][0])


@pytest.mark.parametrize(
    "act",
    ["sum", "both", "ensemble", "version", "decoupled", "nothing", "sequence", "no_output", "one_as_decoupled"],
)
def test_models_that_ask_others(both: Both, act: str) -> None:
    ours, theirs = (said(each, act) for each in both)
    assert ours == theirs


@pytest.mark.parametrize("act", ["no_input", "wrong_input", "nobody", "no_version"])
def test_errors_of_models_that_ask_others(both: Both, act: str) -> None:
    ours, theirs = (said(each, act) for each in both)
    if act in ("nobody", "no_version"):  # which Triton calls not ready
        assert ours.startswith(theirs[: theirs.index(": Failed")])
    else:
        assert ours == theirs.replace("[request id: <id_unknown>] ", "")


def test_errors_of_models_that_stream_reach_who_asks(both: Both) -> None:
    assert said(both[0], "fails") == [["one"], "error: it failed"]
    assert said(both[1], "fails") == [["one"], []]  # an empty response


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("reshaped", [1, 2, 3]),
        ("reshaped", [3, 2, 3]),
        ("reshaped", [1, 6]),
        ("one_number", [1, 1]),
        ("one_number", [3, 1]),
        ("one_number", [3]),
    ],
)
def test_shapes(both: Both, model: str, shape: list[int]) -> None:
    sent = asks(model, tensor("IN", "INT32", shape, list(range(math.prod(shape)))))
    ours, theirs = (seen(ask(each, sent)) for each in both)
    if "error" in theirs:
        assert say_the_same(ours["error"], theirs["error"])
    else:
        assert ours == theirs


def test_requests_of_several_sizes_in_one_batch(both: Both) -> None:
    def one(server: Served, size: int) -> httpx.Response:
        return ask(server, asks("ragged", tensor("IN", "FP32", [1, size], [1.0] * size)))

    sizes = [1, 3, 2, 5]
    with concurrent.futures.ThreadPoolExecutor(len(sizes)) as pool:
        found = [[seen(each) for each in pool.map(one, [server] * len(sizes), sizes)] for server in both]
    assert found[0] == found[1]
