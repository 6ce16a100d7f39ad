"""Python models of Triton's in processes of their own: what they get, and what becomes of what they say."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.hosting.client import HostedClient
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference
from octavo.hosting.tensors import Encoded, Tensor
from octavo.hosting.wire import SEQUENCE_START, Details
from octavo.worker.control import WorkerState
from tests.hosting.served import eventually
from tests.hosting.triton.running import Running, infer, inference, running, stream

MODELS = Path(__file__).parent / "python_models"
ONE = np.ones((1, 2), np.float32)


@pytest.fixture(scope="module")
def models() -> Iterator[Running]:
    with running(MODELS) as started:
        yield started


def said(models: Running, act: str, **options: Any) -> Any:
    """What `everything` says of a request."""
    found = models.run(infer(models.model("everything"), {"x": ONE, "act": act}, **options))
    return json.loads(found["said"][0, 0])


def failure(models: Running, act: str) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        said(models, act)
    return caught.value


# --- what a model gets ------------------------------------------------------------------------------------------------


def test_a_model_is_initialized_with_triton_s_arguments(models: Running) -> None:
    arguments = said(models, "args")
    config = json.loads(arguments.pop("model_config"))
    assert arguments == {
        "model_instance_kind": "CPU",
        "model_instance_name": "everything_0_0",
        "model_instance_device_id": "0",
        "model_repository": str(MODELS / "everything"),
        "model_version": "1",
        "model_name": "everything",
    }
    assert config == models.model("everything").info.config  # type: ignore[union-attr]
    assert config["parameters"] == {"greeting": {"string_value": "hello"}}
    assert config["input"][0]["dims"] == [-1]


def test_a_request_says_all_of_itself(models: Running) -> None:
    plain = {
        "count": 1,
        "request_id": "",
        "correlation_id": 0,
        "flags": 0,
        "timeout": 0,
        "parameters": {},
        "wanted": ["said", "y"],
        "cancelled": False,
        "context": None,
    }
    assert said(models, "") == plain
    details = Details("mine", "a text", SEQUENCE_START, {"a": 1, "b": 2.5, "c": True, "d": "e"})
    told = said(models, "", outputs=("said",), timeout=7.0, details=details)
    assert told == plain | {
        "request_id": "mine",
        "correlation_id": "a text",
        "flags": 1,
        "timeout": 7_000_000,
        "parameters": {"a": 1, "b": 2.5, "c": True, "d": "e"},
        "wanted": ["said"],
    }


@pytest.mark.parametrize("columns", [0, 1, 300_000])
def test_arrays_are_the_model_s_own(models: Running, columns: int) -> None:
    client = models.model("everything")
    x = np.random.default_rng(0).random((2, columns), np.float32)

    async def scenario() -> None:
        for _ in range(3):  # it doubles them in their place, wherever they came from
            np.testing.assert_array_equal((await infer(client, {"x": x}, outputs=("y",)))["y"], 2 * x)

    models.run(scenario())


def test_only_what_is_wanted_and_configured_is_sent(models: Running) -> None:
    client = models.model("everything")
    assert models.run(infer(client, {"x": ONE})).keys() == {"y", "said"}
    assert models.run(infer(client, {"x": ONE}, outputs=("y",))).keys() == {"y"}


def test_responses_have_parameters(models: Running) -> None:
    outputs = models.run(models.model("everything").infer(inference({"x": ONE})))
    assert outputs.parameters.keys() == {"seen", "even", "unit"}
    assert outputs.parameters["even"] is True
    assert outputs.parameters["unit"] == "m"


# --- batches ----------------------------------------------------------------------------------------------------------


def test_requests_share_a_batch_where_the_configuration_says_so(models: Running) -> None:
    client = models.model("everything")

    async def scenario() -> list[int]:
        found = await asyncio.gather(*(infer(client, {"x": ONE}) for _ in range(8)))
        return [json.loads(each["said"][0, 0])["count"] for each in found]

    assert max(models.run(scenario())) == 8


def test_else_they_do_not_and_shapes_are_those_of_the_model(models: Running) -> None:
    client = models.model("alone")
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)

    async def scenario() -> None:
        for found in await asyncio.gather(*(infer(client, {"x": x}) for _ in range(6))):
            assert found["count"].tolist() == [[1], [1]]
            np.testing.assert_array_equal(found["y"], x.reshape(2, 3, 2))

    models.run(scenario())
    assert client.info is not None
    assert (client.info.processes, client.info.instances, client.info.max_batch_size) == (2, 2, 16)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("5", "Expected a list in the execute return, found type '<class 'int'>'."),
        ("([],)", "Expected a list in the execute return, found type '<class 'tuple'>'."),
        (
            "[]",
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0",
        ),
        (
            "[1]",
            "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'int'>'.",
        ),
    ],
)
def test_what_execute_may_not_return(models: Running, returned: str, message: str) -> None:
    error = failure(models, f"return {returned}")
    assert str(error) == f"Failed to process the request(s) for model 'everything_0_0', message: {message}"
    assert error.code is Code.INTERNAL


@pytest.mark.parametrize("returned", ["None", "[None]"])
def test_a_request_without_a_response_is_told_so(models: Running, returned: str) -> None:
    assert "without a response" in str(failure(models, f"return {returned}"))


def test_an_exception_fails_its_batch_with_its_message(models: Running) -> None:
    client = models.model("everything")

    async def scenario() -> list[BaseException | dict[str, Any]]:
        asked = [infer(client, {"x": ONE, "act": each}) for each in ("", "raise", "")]
        return await asyncio.gather(*asked, return_exceptions=True)

    expected = "Failed to process the request(s) for model 'everything_0_0', message: ValueError: this is too much"
    found = models.run(scenario())
    assert [str(each) for each in found] == [expected] * 3
    assert str(failure(models, "exit")).endswith("message: SystemExit: 3")
    assert said(models, "")["count"] == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UNKNOWN", Code.UNKNOWN),
        ("INTERNAL", Code.INTERNAL),
        ("NOT_FOUND", Code.NOT_FOUND),
        ("INVALID_ARG", Code.INVALID_ARGUMENT),
        ("UNAVAILABLE", Code.UNAVAILABLE),
        ("UNSUPPORTED", Code.UNSUPPORTED),
        ("ALREADY_EXISTS", Code.ALREADY_EXISTS),
        ("CANCELLED", Code.CANCELLED),
    ],
)
def test_an_error_is_one_request_s(models: Running, name: str, code: Code) -> None:
    client = models.model("everything")

    async def scenario() -> list[Any]:
        asked = [infer(client, {"x": ONE, "act": each}) for each in ("", f"error {name}")]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad = models.run(scenario())
    assert good["y"].tolist() == [[2.0, 2.0]]
    assert (str(bad), bad.code) == ("not this one", code)


def test_a_model_that_dies_is_started_again(models: Running) -> None:
    assert "the model failed" in str(failure(models, "die"))
    client = models.model("everything")

    async def scenario() -> None:
        await eventually(lambda: client.state is WorkerState.READY)

    models.run(scenario())
    assert said(models, "")["count"] == 1


def test_a_model_that_hangs_is_started_again(tmp_path: Path) -> None:
    with running(MODELS) as own:
        client = own.model("everything", execution_timeout=0.5)
        with pytest.raises(InferenceError, match=r"did not return within 0\.5 s"):
            own.run(infer(client, {"x": ONE, "act": "hang"}))
        assert own.run(infer(client, {"x": ONE}))["y"].tolist() == [[2.0, 2.0]]


def shared_memory() -> set[str]:
    """What there is of it, but for what a Triton that happens to run here has."""
    return {each for each in os.listdir("/dev/shm") if not each.startswith("triton_python_backend")}


def test_nothing_is_left_behind(capfd: pytest.CaptureFixture[str]) -> None:
    before = shared_memory()
    with running(MODELS) as own:

        def is_ready(worker: str) -> bool:
            return own.models.supervisor.status(worker).state is WorkerState.READY

        client = own.model("alone")
        own.run(infer(client, {"x": np.ones((1, 2, 3), np.float32)}))
        own.run(eventually(lambda: len(client.workers) == 2 and all(map(is_ready, client.workers))))
        with pytest.raises(InferenceError):
            own.run(infer(own.model("everything"), {"x": np.ones((1, 300_000), np.float32), "act": "raise"}))
    assert shared_memory() <= before
    assert capfd.readouterr().err.count("let go of everything") == 2  # one for each instance


# --- code that waits --------------------------------------------------------------------------------------------------


def test_asynchronous_code_goes_on_between_requests(models: Running) -> None:
    client = models.model("awaits")
    assert models.run(infer(client, {"x": np.zeros((1, 1), np.int32)}))["y"].tolist() == [[0]]
    assert models.run(infer(client, {"x": np.zeros((1, 1), np.int32)}))["y"].tolist() == [[1]]
    with pytest.raises(InferenceError, match="message: ValueError: negative"):
        models.run(infer(client, {"x": np.full((1, 1), -1, np.int32)}))


# --- what a model says of itself --------------------------------------------------------------------------------------


def test_a_model_completes_its_configuration(models: Running) -> None:
    client = models.model("completes")
    x = np.array([[1, 2]], np.int64)
    assert models.run(infer(client, {"x": x}))["y"].tolist() == [[1, 2]]
    assert models.run(infer(client, {"x": x, "z": x}))["y"].tolist() == [[2, 4]]
    assert client.info is not None
    config = client.info.config
    assert config is not None
    assert (config["max_batch_size"], config["backend"], config["default_model_filename"]) == (3, "python", "model.py")
    assert config["dynamic_batching"]["preferred_batch_size"] == [3]


def test_files_beside_the_model_and_bfloat16(models: Running) -> None:
    client = models.model("helpers")
    bits = np.array([0x3F80, 0x4000], np.uint16)  # 1 and 2
    x = Encoded.of(Tensor(Datatype.BF16, bits))
    outputs = models.run(client.infer(Inference(inputs={"x": x})))
    assert outputs["y"].datatype is Datatype.BF16
    assert np.frombuffer(outputs["y"].data, np.uint16).tolist() == [0x4000, 0x4080]
    assert str(MODELS / "helpers" / "1").encode() in bytes(outputs["folder"].data)


def test_figures_of_a_model_s_own(models: Running) -> None:
    client = models.model("reports")
    for at, x in enumerate((5.0, 0.5, 100.0), 1):
        assert models.run(infer(client, {"x": np.array([x])}))["y"].tolist() == [at]

    async def scenario() -> None:
        await eventually(lambda: any(each.samples[0].value == 100.0 for each in client.figures))

    models.run(scenario())
    found = {each.name: each for each in client.figures}
    assert found["seen_total"].samples[0].value == 3
    assert found["seen_total"].samples[0].labels == {"model": "reports", "version": "1"}
    sizes = found["value_sizes"].samples[0]
    assert (sizes.bounds, sizes.buckets, sizes.value) == ((1.0, 10.0), (1, 1, 1), 105.5)


def test_a_model_says_whether_it_is_ready(models: Running) -> None:
    client = models.model("readies")

    async def tell(ready: bool, **parameters: bool) -> None:
        await infer(client, {"ready": np.array([ready])}, details=Details(parameters=dict(parameters)))

    async def scenario() -> None:
        assert await client.confirms()
        await tell(False)
        assert not await client.confirms()
        computing = asyncio.create_task(tell(True, wait=True))
        while not await client.confirms():  # it is asked while it computes
            assert not computing.done()
        await computing
        await tell(True, **{"break": True})
        assert not await client.confirms()
        await tell(True)
        assert await client.confirms()

    models.run(scenario())
    assert models.run(models.model("everything").confirms())


# --- any number of responses ------------------------------------------------------------------------------------------


async def numbers(client: HostedClient, act: str) -> list[int]:
    x = np.array([act.encode()], object)
    return [int(each["n"][0]) async for each in stream(client, {"act": x})]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("count 5", [0, 1, 2, 3, 4]),
        ("count 0", []),
        ("last 3", [0, 1, 2]),
        ("later 4", [0, 1, 2, 3]),
        ("lets_go", [5]),
        ("says_nothing", []),
        ("twice", [1]),
    ],
)
def test_responses_come_in_their_order(models: Running, act: str, expected: list[int]) -> None:
    client = models.model("streams")

    async def scenario() -> None:
        for found in await asyncio.gather(*(numbers(client, act) for _ in range(4))):
            assert found == expected

    models.run(scenario())
    assert client.pending == 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("fails", "message: ValueError: after the first"),
        ("refuses", "no more"),
        ("returns", "is using the decoupled mode and the execute function must return None"),
    ],
)
def test_a_stream_may_end_with_an_error(models: Running, act: str, message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        models.run(numbers(models.model("streams"), act))


@pytest.mark.parametrize("act", ["until_cancelled", "waits_until_cancelled"])
def test_a_model_is_told_when_nobody_listens_any_more(models: Running, act: str) -> None:
    client = models.model("streams")

    async def scenario() -> None:
        [before] = await numbers(client, "cancelled_so_far")
        results = stream(client, {"act": np.array([act.encode()], object)})
        assert (await anext(results))["n"].tolist() == [0]
        await results.aclose()
        after = before
        while after == before:
            [after] = await numbers(client, "cancelled_so_far")
        assert after == before + 1

    models.run(scenario())


def test_a_request_is_computed_again_as_long_as_the_model_wants(models: Running) -> None:
    client = models.model("again")

    async def scenario() -> None:
        results = [each["left"].tolist() async for each in stream(client, {"n": np.array([4], np.int32)})]
        assert results == [[3], [2], [1], [0]]

    models.run(scenario())


def test_a_stream_ends_when_its_model_dies(models: Running) -> None:
    with running(MODELS) as own:
        client = own.model("streams")

        async def scenario() -> None:
            results = stream(client, {"act": np.array([b"until_cancelled"], object)})
            await anext(results)
            pid = own.models.supervisor.status("streams").pid
            assert pid is not None
            os.kill(pid, 9)
            with pytest.raises(InferenceError, match="the model failed"):
                async for _ in results:
                    pass

        own.run(scenario())
