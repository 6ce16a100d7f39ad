"""Hosted models in processes of their own, as a frontend sees them: what happens is said to whom it concerns."""

import asyncio
import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest

from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BodyCall, Inference
from octavo.hosting.pending import Pending
from tests.hosting.served import Served, ask, encoded, eventually, infer, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as started:
        yield started


def strings(*values: str) -> np.ndarray:
    return np.array([[value.encode()] for value in values], object)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_a_body_is_one_item(served: Served) -> None:
    client = served.model("Classify")
    assert served.run(ask(client, text="hello there")) == {"label": "long", "score": 1.1}


def test_the_same_model_takes_tensors(served: Served) -> None:
    client = served.model("Classify")
    found = served.run(infer(client, {"text": strings("hi", "hello there")}))
    assert found["label"].tolist() == [[b"short"], [b"long"]]
    assert found["score"].tolist() == [[0.2], [1.1]]
    only = served.run(infer(client, {"text": strings("hi")}, outputs=("score",)))
    assert only.keys() == {"score"}


def test_arrays_of_any_shape(served: Served) -> None:
    client = served.model("identity")
    for shape in ((1, 16), (3, 2, 2), (2, 0), (1,), (8, 1)):
        x = np.random.default_rng(0).random(shape, np.float32)
        np.testing.assert_array_equal(served.run(infer(client, {"x": x}))["output"], x)
    assert served.run(ask(client, x=[[1, 2], [3, 4.5]])) == [[1.0, 2.0], [3.0, 4.5]]


def test_large_arrays_go_by_shared_memory(served: Served) -> None:
    client = served.model("identity")
    random = np.random.default_rng(0)

    async def scenario() -> None:
        arrays = [random.random((1, size), np.float32) for size in (20_000, 300_000, 20_001, 300_000, 1_000_000, 3)]
        for _ in range(3):
            found = await asyncio.gather(*(infer(client, {"x": each}) for each in arrays))
            for x, outputs in zip(arrays, found, strict=True):
                np.testing.assert_array_equal(outputs["output"], x)

    served.run(scenario())


def test_code_may_keep_and_change_its_arrays(served: Served) -> None:
    client = served.model("Keeps")

    async def scenario() -> None:
        for number in range(6):
            x = np.full((1, 100_000), number, np.float32)
            assert (await infer(client, {"x": x}))["output"].tolist() == [[True]]

    served.run(scenario())


def test_tensors_beside_each_other(served: Served) -> None:
    client = served.model("sums")
    x, times = np.ones((2, 3), np.float32), np.array([[1], [2]])
    found = served.run(infer(client, {"x": x, "times": times}))
    assert found["total"].tolist() == [[3.0], [6.0]]
    assert found["count"].tolist() == [[3], [3]]


def test_values_that_a_body_leaves_out(served: Served) -> None:
    client = served.model("plain")
    assert served.run(ask(client, number=2)) == {"number": 2.0, "name": "x", "flags": None}
    assert served.run(ask(client, number=2, flags=[True], name="é")) == {"number": 2.0, "name": "é", "flags": [True]}


def test_streams(served: Served) -> None:
    async def collect(name_: Any, **body: Any) -> list[bytes]:
        import orjson

        call = BodyCall(media_type="application/json", body=orjson.dumps(body))
        return [bytes(each.data) async for each in name_.stream_call(call)]

    assert served.run(collect(served.model("words"), prompt="a b c")) == [b'"a"', b'"b"', b'"c"']
    assert served.run(collect(served.model("counted"), n=3)) == [b"0", b"1", b"2"]
    assert served.run(collect(served.model("identity"), x=[1])) == [b"[1.0]"]


def test_a_stream_ends_when_nobody_reads_it(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "ended"
    client = served.model("endless")

    async def scenario() -> None:
        call = BodyCall(media_type="application/json", body=b'{"path": "%b"}' % str(path).encode())
        stream = client.stream_call(call)
        async for each in stream:
            if each.data == b"3":
                break
        await stream.aclose()
        await eventually(path.exists)

    served.run(scenario())
    assert served.run(infer_nothing(client)) == 0


async def infer_nothing(client: Any) -> int:
    return client.pending  # type: ignore[no-any-return]


def test_asynchronous_code_runs_beside_itself(served: Served) -> None:
    client = served.model("patient")

    async def scenario() -> float:
        began = asyncio.get_running_loop().time()
        assert await asyncio.gather(*(ask(client, seconds=0.3) for _ in range(20))) == [0.3] * 20
        return asyncio.get_running_loop().time() - began

    assert served.run(scenario()) < 20 * 0.3


def test_requests_of_several_clients_are_computed_together(served: Served) -> None:
    client = served.model("batches")

    async def scenario() -> list[int]:
        return list(await asyncio.gather(*(ask(client, x=n) for n in range(17))))

    served.run(ask(client, x=0))
    sizes = served.run(scenario())
    assert max(sizes) == 8
    statistics = client.statistics
    assert statistics.inferences == statistics.success == 18
    assert statistics.executions == sum(each.count for each in statistics.batches.values()) < 10


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_the_request_s_that_it_is_about(served: Served) -> None:
    client = served.model("Fragile")

    async def scenario() -> list[Any]:
        told = ["pid", "refuse", "raise", "exit", "unwritable", "nan"]
        return list(await asyncio.gather(*(ask(client, do=each) for each in told), return_exceptions=True))

    pid, refused, *failed, nan = served.run(scenario())
    assert isinstance(pid, int)
    assert isinstance(refused, InferenceError)
    assert (refused.code, str(refused)) == (Code.INVALID_ARGUMENT, "this is no good")
    assert nan is None
    words = ["RuntimeError: told to", "sys.exit(4)", "cannot be written as JSON"]
    for error, word in zip(failed, words, strict=True):
        assert isinstance(error, InferenceError)
        assert error.code is Code.INTERNAL
        assert word in str(error)
    assert served.run(ask(client, do="pid")) == pid


def test_the_wrong_number_of_rows(served: Served) -> None:
    client = served.model("wrong_rows")
    with pytest.raises(InferenceError, match="predict returned 2 rows for 1 requests") as failed:
        served.run(ask(client, x=1))
    assert failed.value.code is Code.INTERNAL


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        (b"", "not valid JSON", None),
        (b"{", "not valid JSON", None),
        (b"[]", "must be an object with the fields: text", None),
        (b'{"txt": "a"}', "missing", "text"),
        (b'{"text": "a", "more": 1}', "Unknown field 'more'; there are: text", "more"),
        (b'{"text": 1}', "Input should be a valid string", "text"),
        (b"\xff", "not valid JSON", None),
        (b'{"text": "\\ud800"}', "not valid JSON", None),
        (b"[" * 100_000, "not valid JSON", None),
    ],
)
def test_bodies_that_are_none_of_the_model_s(served: Served, body: bytes, message: str, field: str | None) -> None:
    client = served.model("Classify")
    with pytest.raises(InferenceError, match=message) as refused:
        served.run(client.call(BodyCall(media_type="application/json", body=body)))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.field == field


def test_forms_and_files(served: Served) -> None:
    client = served.model("shout")

    def call(media_type: str, body: bytes) -> tuple[str, bytes]:
        found = served.run(client.call(BodyCall(media_type=media_type, body=body)))
        return found.media_type, bytes(found.data)

    form = b"\r\n".join(
        [
            b"--edge",
            b'Content-Disposition: form-data; name="file"; filename="a.txt"',
            b"Content-Type: text/plain",
            b"",
            b"a\r\n--edg",
            b"--edge",
            b'Content-Disposition: form-data; name="times"',
            b"",
            b"2",
            b"--edge--",
            b"",
        ]
    )
    twice = b"A\r\n--EDG" * 2
    assert call('multipart/form-data; boundary="edge"', form) == ("application/octet-stream", twice)
    assert call("application/json", b'{"file": "YWI="}') == ("application/octet-stream", b"AB")
    for wrong, message in (
        (("multipart/form-data", form), "names no boundary"),
        (("multipart/form-data; boundary=edge", form[:-12]), "ends too early"),
        (("multipart/form-data; boundary=other", form), "cannot be read"),
        (("application/json", b'{"file": "%"}'), "no base 64"),
        (("text/html", b"x"), "Content-Type text/html is not what this model takes"),
    ):
        with pytest.raises(InferenceError, match=message):
            call(*wrong)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"do": "raise"}, "NoException: not even an exception"),
        ({"do": "mute"}, "Mute: "),
        ({"do": "read"}, "EOFError"),
        ({"picky": {"key": "b"}}, "KeyError: 'b'"),
    ],
)
def test_whatever_code_does_fails_its_request_and_not_the_process(
    served: Served, body: dict[str, object], message: str
) -> None:
    client = served.model("odd")
    process = served.run(ask(client))
    with pytest.raises(InferenceError, match=message) as failed:
        served.run(ask(client, **body))
    assert failed.value.code is Code.INTERNAL
    assert served.run(ask(client)) == process


def test_results_that_json_has_no_word_for(served: Served) -> None:
    client = served.model("odd")
    assert served.run(ask(client, do="point")) == {"x": 1, "y": "P1D"}
    assert served.run(ask(client, do="later")) == "waited"  # what a plain function gives to wait for


def test_images(served: Served, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    code = tmp_path / "images.py"
    code.write_text(IMAGES)
    client = served.model("convert", model=f"{code}:convert")
    made = served.run(client.call(BodyCall(media_type="application/json", body=b'{"mode": "CMYK"}')))
    assert image.open(io.BytesIO(made.data)).mode == "RGB"
    again = b'{"mode": "L", "image": "%b"}' % base64.b64encode(made.data)
    assert served.run(client.call(BodyCall(media_type="application/json", body=again))).media_type == "image/png"
    with pytest.raises(InferenceError, match="cannot write mode F as PNG"):
        served.run(ask(client, mode="F"))
    with pytest.raises(InferenceError, match="Invalid 'image': this is no image that can be read") as refused:
        served.run(ask(client, mode="L", image="AAAA"))
    assert refused.value.field == "image"


IMAGES = """
from typing import Optional
import PIL.Image
import octavo

@octavo.model
def convert(mode: str, image: Optional[PIL.Image.Image] = None) -> PIL.Image.Image:
    return (image or PIL.Image.new("RGB", (2, 2))).convert("L" if mode == "F" else "RGB").convert(mode)
"""


def test_a_form_s_boundary_is_the_client_s_fault(served: Served) -> None:
    client = served.model("shout")
    media_type = f"multipart/form-data; boundary={300 * 'x'}"
    with pytest.raises(InferenceError, match="cannot be read") as refused:
        served.run(client.call(BodyCall(media_type=media_type, body=b"")))
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_asynchronous_code_that_cancels_itself_fails(served: Served) -> None:
    client = served.model("patient")
    with pytest.raises(InferenceError, match="its code was cancelled"):
        served.run(ask(client, seconds=0, cancels=True))
    assert served.run(ask(client, seconds=0)) == 0


def test_asynchronous_code_that_takes_too_long_is_ended_alone(served: Served) -> None:
    client = served.model("patient", execution_timeout=1.0)

    async def scenario() -> list[Any]:
        asked = (ask(client, seconds=60), *(ask(client, seconds=0.6) for _ in range(3)))
        late = asyncio.create_task(_after(0.5, ask(client, seconds=0.9)))
        return [*await asyncio.gather(*asked, return_exceptions=True), await late]

    too_long, *others = served.run(scenario())
    assert isinstance(too_long, InferenceError)
    assert "did not return within 1 s" in str(too_long)
    assert others == [0.6, 0.6, 0.6, 0.9]


async def _after(seconds: float, work: Any) -> Any:
    await asyncio.sleep(seconds)
    return await work


def test_asynchronous_code_that_waits_for_nothing_ends_when_nobody_reads_it(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "ended"
    client = served.model("restless")

    async def scenario() -> None:
        call = BodyCall(media_type="application/json", body=b'{"path": "%b"}' % str(path).encode())
        stream = client.stream_call(call)
        await anext(stream)
        await stream.aclose()
        await eventually(path.exists)

    served.run(scenario())


def test_a_generator_that_fails_when_it_is_ended(served: Served) -> None:
    client = served.model("untidy")

    async def scenario(read: int) -> list[bytes]:
        found: list[bytes] = []
        stream = client.stream_call(BodyCall(media_type="application/json", body=b'{"n": 1000}'))
        async for each in stream:
            found.append(bytes(each.data))
            if len(found) == read:
                break
        await stream.aclose()
        return found

    assert served.run(scenario(2)) == [b"0", b"1"]
    with pytest.raises(InferenceError, match="cannot end"):  # the same process, or its end would be told
        served.run(scenario(2000))


def test_too_many_wait_for_code_without_batches(served: Served) -> None:
    client = served.model("words", max_queue_size=2)

    async def scenario() -> list[Any]:
        body = b'{"prompt": "a", "pause": 0.3}'
        asked = (_all(client.stream_call(BodyCall(media_type="application/json", body=body))) for _ in range(6))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    found = served.run(scenario())
    refused = [each for each in found if isinstance(each, InferenceError)]
    assert len(refused) == 3
    assert {each.code for each in refused} == {Code.UNAVAILABLE}
    assert all("maximum queue size: 2" in str(each) for each in refused)


async def _all(stream: Any) -> list[bytes]:
    return [bytes(each.data) async for each in stream]


def test_a_death_fails_the_batch_that_it_came_of_and_no_other(served: Served) -> None:
    client = served.model("Fragile", max_batch_size=1)

    async def scenario() -> list[Any]:
        first = asyncio.create_task(ask(client, do="sleep"))
        await eventually(lambda: client.pending == 1)
        told = ["pid", "crash", "pid", "die", "pid"]
        return [await first, *await asyncio.gather(*(ask(client, do=each) for each in told), return_exceptions=True)]

    first, before, crashed, between, died, after = served.run(scenario())
    assert first == before
    for error, why in ((crashed, "SIGSEGV"), (died, "status 3")):
        assert isinstance(error, InferenceError)
        assert error.code is Code.INTERNAL
        assert why in str(error)
    assert len({before, between, after}) == 3
    assert client.pending == 0


def test_what_never_returns_is_ended(served: Served) -> None:
    client = served.model("Fragile", execution_timeout=0.5)
    before = served.run(ask(client, do="pid"))
    with pytest.raises(InferenceError, match=r"did not return within 0\.5 s"):
        served.run(ask(client, do="hang"))
    assert served.run(ask(client, do="pid")) != before


# --- who waits --------------------------------------------------------------------------------------------------------


def test_too_many_wait(served: Served) -> None:
    client = served.model("Fragile", max_queue_size=2, max_batch_size=1)

    async def scenario() -> list[Any]:
        told = ["sleep", "pid", "pid", "pid"]
        return list(await asyncio.gather(*(ask(client, do=each) for each in told), return_exceptions=True))

    *taken, refused = served.run(scenario())
    assert len(set(taken)) == 1
    assert isinstance(refused, InferenceError)
    assert refused.code is Code.UNAVAILABLE
    assert "Exceeds maximum queue size" in str(refused)


def test_whoever_may_not_wait_so_long_is_told_so_at_once(served: Served) -> None:
    client = served.model("Fragile", max_batch_size=1, queue_timeout_action="reject")

    async def scenario() -> tuple[float, Any]:
        loop = asyncio.get_running_loop()
        busy = asyncio.create_task(ask(client, do="sleep"))
        await eventually(lambda: client.pending == 1)
        began = loop.time()
        call = BodyCall(media_type="application/json", body=b'{"do": "pid"}', timeout=0.05)
        try:
            await client.call(call)
        except InferenceError as error:
            return loop.time() - began, (error, await busy)
        raise AssertionError("it waited")

    seconds, (error, _) = served.run(scenario())
    assert (error.code, str(error)) == (Code.UNAVAILABLE, "Request timeout expired")
    assert seconds < 0.25


def test_a_client_that_leaves_is_taken_out_of_the_queue(served: Served) -> None:
    client = served.model("batches", max_batch_size=1)

    async def scenario() -> None:
        done = client.statistics.inferences
        waiting = [asyncio.create_task(ask(client, x=n)) for n in range(10)]
        await asyncio.sleep(0)  # all have asked; none is computed yet, however slow this machine is
        assert client.pending == 10
        for each in waiting[1:9]:
            each.cancel()
        assert await waiting[9] == 1
        await waiting[0]
        assert client.statistics.inferences - done == 2
        assert client.statistics.canceled == 8
        assert client.pending == 0

    served.run(scenario())


def test_urgent_requests_go_before_others(served: Served) -> None:
    client = served.model("batches", max_batch_size=1, priority_levels=3)

    async def scenario() -> list[int]:
        order: list[int] = []

        async def one(priority: int) -> None:
            await client.infer(Inference(inputs={"x": encoded(np.array([[1]]))}, priority=priority))
            order.append(priority)

        # While the first one is computed the others wait.
        first = asyncio.create_task(client.infer(Inference(inputs={"x": encoded(np.array([[1]]))})))
        await eventually(lambda: client.pending == 1)
        await asyncio.gather(first, *(one(each) for each in (3, 2, 1, 0)))
        return order

    assert served.run(scenario()) == [1, 2, 0, 3]


def test_replies_in_the_order_of_the_requests(served: Served) -> None:
    client = served.model("patient", preserve_ordering=True)

    async def scenario() -> None:
        order: list[float] = []

        async def one(seconds: float) -> None:
            await ask(client, seconds=seconds)
            order.append(seconds)

        slow = asyncio.create_task(one(0.2))
        await eventually(lambda: client.pending == 1)
        others = [asyncio.create_task(one(seconds)) for seconds in (0.0, 0.01)]
        gone = asyncio.create_task(one(0.02))
        await eventually(lambda: client.pending == 1)  # all but the first have been computed, and wait for it
        gone.cancel()
        await asyncio.gather(slow, *others)
        assert order == [0.2, 0.0, 0.01]
        assert client.pending == 0

    served.run(scenario())


def test_who_leaves_while_his_answer_waits_for_others_is_not_told_of_it(served: Served) -> None:
    client = served.model("patient", preserve_ordering=True)

    async def scenario() -> None:
        told: list[Pending] = []
        bodies = [orjson.dumps({"seconds": each}) for each in (0.2, 0.0)]
        asked = [BodyCall(media_type="application/json", body=each) for each in bodies]
        calls = [client.begin_call(each, told.append) for each in asked]
        await eventually(lambda: client.pending == 1)
        assert calls[1].settled
        client.leave(calls[1])
        await eventually(lambda: calls[1].ended)
        assert told == [calls[0]]

    served.run(scenario())


def test_what_is_computed_when_the_server_stops() -> None:
    with serving() as stopping:
        client = stopping.model("patient")

        async def scenario() -> Any:
            asked = asyncio.create_task(ask(client, seconds=60))
            await asyncio.sleep(0)
            assert await ask(client, seconds=0) == 0  # which came later: the other one is computed
            await stopping.supervisor.stop()
            return await asyncio.gather(asked, return_exceptions=True)

        [error] = stopping.run(scenario())
    assert isinstance(error, InferenceError)
    assert (error.code, str(error)) == (Code.UNAVAILABLE, "the server is shutting down")


def test_code_that_is_written_again_while_it_loads_is_known_to_be_older(served: Served, tmp_path: Path) -> None:
    code = tmp_path / "edited.py"
    code.write_text(EDITED)
    os.utime(code, (1, 1))
    client = served.model("Edited", model=f"{code}:Edited")
    assert client.info is not None
    assert client.info.sources == {str(code): 1.0}


EDITED = """
import os
import octavo

@octavo.model
class Edited:
    def load(self):
        os.utime(__file__, (2, 2))

    def predict(self, x: int) -> int:
        return x
"""


def test_a_file_is_served_by_threads_of_one_process(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "double.onnx"
    shape = ["batch", 3]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    client = served.model("double", model=str(path), instances=2, max_batch_size=4)
    assert client.info is not None
    assert (client.info.runtime, client.info.instances, client.info.processes) == ("onnx", 2, 1)

    async def scenario() -> None:
        rows = [np.full((1 + n % 3, 3), n, np.float32) for n in range(40)]
        found = await asyncio.gather(*(infer(client, {"x": each}) for each in rows))
        for each, outputs in zip(rows, found, strict=True):
            np.testing.assert_array_equal(outputs["y"], 2 * each)

    for rounds in range(1, 21):  # its threads may be as fast as the requests come, now and then
        served.run(scenario())
        assert client.statistics.success == 40 * rounds
        if client.statistics.executions < client.statistics.success:
            break
    else:
        pytest.fail("no two requests were ever computed together")
