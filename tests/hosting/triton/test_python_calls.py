"""Python models that ask other models, and themselves."""

import asyncio
import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.triton.python_backend.calls import Calls
from octavo.hosting.triton.python_backend.request import InferenceRequest as PbRequest
from octavo.hosting.triton.python_backend.tensor import Tensor
from octavo.hosting.wire import Answered, Part
from tests.hosting.triton.running import Running, infer, running

MODELS = Path(__file__).parent / "python_models"


@pytest.fixture(scope="module")
def models() -> Iterator[Running]:
    with running(MODELS) as started:
        for name in ("everything", "streams"):
            started.model(name)
        yield started


async def saying(models: Running, act: str, name: str) -> Any:
    client = await models.ready(name)
    return json.loads((await infer(client, {"act": act}))["said"][0])


def said(models: Running, act: str, name: str = "asks") -> Any:
    """What comes of what a model does."""
    return models.run(saying(models, act, name))


@pytest.mark.parametrize("cancels", [False, True])
def test_an_answer_that_was_awaited_is_held_no_longer_than_it_is_looked_at(cancels: bool) -> None:
    """The memory that it came in is lent until then."""
    here, peer = Mock(), Mock()
    here.within.return_value = ()
    calls = Calls(Mock(), here, lambda: [peer])

    async def test() -> weakref.ref[Any]:
        tensor = Tensor("x", np.zeros(1, np.float32))
        request = PbRequest(model_name="other", requested_output_names=["x"], inputs=[tensor])
        future = calls.execute_async(request, decoupled=False)
        ask = peer.send.mock_calls[0].args[0]
        memory = np.zeros(16, np.uint8)
        calls.on_message(Answered(ask.call, (Part("x", Datatype.FP32, (4,), 16),)), memory.data)
        if cancels:
            future.cancel()
            await asyncio.sleep(0)
        else:
            assert (await future).output_tensors()[0].as_numpy().shape == (4,)
        return weakref.ref(memory)

    gc.disable()
    try:
        assert asyncio.run(test())() is None
    finally:
        gc.enable()


def test_a_model_gets_the_outputs_of_another(models: Running) -> None:
    assert said(models, "doubles 3") == [[[7.0, 6.0]], "m"]
    assert said(models, "doubles_much 4") == [[1, 200_000], 8.0, 8.0]


def test_what_is_asked_counts_as_any_request(models: Running) -> None:
    statistics = models.model("everything").statistics
    before = statistics.success
    said(models, "doubles 1")
    assert statistics.success == before + 1


def test_all_of_a_request_reaches_the_other(models: Running) -> None:
    told = said(models, "tells")
    assert told == told | {
        "request_id": "mine",
        "correlation_id": "a sequence",
        "flags": 1,
        "timeout": 5_000_000,
        "parameters": {"p": 1},
        "wanted": ["said"],
    }


@pytest.mark.parametrize(
    ("what", "message", "code"),
    [
        (
            "missing",
            "Model nobody - Error when running inference: Request for unknown model: 'nobody' is not found",
            "NOT_FOUND",
        ),
        (
            "input",
            "Model everything - Error when running inference: expected number of inputs between 1 and 2 but got 1 "
            "inputs for model 'everything'. Got input(s) ['act'], but missing required input(s) ['x']. Please provide "
            "all required input(s).",
            "INVALID_ARG",
        ),
        (
            "output",
            "Model everything - Error when running inference: unexpected inference output 'z' for model 'everything'",
            "INVALID_ARG",
        ),
        (
            "model",
            "Failed to process the request(s) for model 'everything_0_0', message: ValueError: this is too much",
            "INTERNAL",
        ),
    ],
)
def test_errors_are_triton_s(models: Running, what: str, message: str, code: str) -> None:
    assert said(models, f"fails {what}") == [message, code]


def test_a_model_that_streams_is_asked_for_all_of_it(models: Running) -> None:
    message, _ = said(models, "fails streams")
    assert "Please use 'decoupled=True' argument" in message
    assert said(models, "streams count 3") == [[[0], [1], [2], []], True]
    assert said(models, "streams last 2") == [[[0], [1]], True]
    found, again = said(models, "streams refuses")
    assert (found, again) == ([[1], "no more"], True)


def test_an_iterator_of_responses_can_be_cancelled(models: Running) -> None:
    assert said(models, "cancels") == "CANCELLED"


def test_any_thread_may_ask(models: Running) -> None:
    assert said(models, "threads 6") == [2.0 * each for each in range(6)]


def test_asynchronous_code_asks_several_at_once(models: Running) -> None:
    client = models.model("asks_async")
    for n in (0, 1, 5):
        found = models.run(infer(client, {"n": np.array([n], np.int32)}))
        assert found["sum"].tolist() == [float(sum(2 * each for each in range(n + 1)) + 0 + 1 + 2)]


def test_a_model_may_ask_itself_if_it_has_instances_left(models: Running) -> None:
    assert said(models, "itself 1") == "here"
    assert "all of its instances (2) wait for what comes of that" in said(models, "itself 2")
    assert "all of its instances (1) wait for what comes of that" in said(models, "itself 1", "asks_alone")
    assert said(models, "itself 1") == "here"


def test_many_ask_at_once(models: Running) -> None:
    async def scenario() -> None:
        found = await asyncio.gather(*(saying(models, f"doubles {each}", "asks") for each in range(40)))
        assert [each[0][0][1] for each in found] == [2.0 * each for each in range(40)]

    models.run(scenario())


def test_models_are_asked_only_while_a_request_is_computed(models: Running) -> None:
    assert said(models, "said_early") == "BLS is only supported during the 'execute' function."


def test_what_a_model_asks_of_the_server(models: Running) -> None:
    assert said(models, "ready") == [True, False]
    assert said(models, "loads everything") == (
        "Failed to load model: explicit model load / unload is not allowed if polling is enabled"
    )


def test_a_model_that_dies_while_it_waits_is_told_of_as_any(models: Running) -> None:
    client = models.model("everything")

    async def scenario() -> None:
        with pytest.raises(InferenceError, match="the model failed"):
            await infer(client, {"x": np.ones((1, 2), np.float32), "act": "die"})

    models.run(scenario())
    models.run(client.ready())
    assert said(models, "doubles 3") == [[[7.0, 6.0]], "m"]
