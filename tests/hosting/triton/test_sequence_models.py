"""Models of sequences in processes of their own: what they are told of each request, and what becomes of it."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from octavo.errors import ConfigError
from octavo.hosting.client import HostedClient
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.lanes import SequenceId
from octavo.hosting.triton.layout import ModelFolder
from octavo.hosting.triton.planning import plan_model
from octavo.hosting.wire import SEQUENCE_END, SEQUENCE_START, Details
from octavo.worker.control import WorkerState
from tests.hosting.served import eventually
from tests.hosting.triton.running import Running, infer, running, stream

START, END = SEQUENCE_START, SEQUENCE_END

ACCUMULATOR = """
import json, os, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        told = []
        for request in requests:
            tensors = {each.name(): each for each in request.inputs()}
            told.append({n: str(t.as_numpy().ravel()[0]) for n, t in tensors.items() if n not in ("x", "ID")})
            told[-1]["at"] = len(told) - 1
        answers = []
        for request, said in zip(requests, told):
            tensors = {each.name(): each.as_numpy() for each in request.inputs()}
            sequence, x = tensors["ID"].ravel()[0], tensors["x"].ravel()[0]
            if tensors["READY"].ravel()[0]:
                if x == -1:
                    os._exit(1)
                if x == -2:
                    time.sleep(0.3)
                if tensors["START"].ravel()[0] == 7:
                    self.sums[sequence] = 0
                self.sums[sequence] += x
            said["id"] = sequence.decode() if isinstance(sequence, bytes) else int(sequence)
            said["rows"] = len(requests)
            said["pid"] = os.getpid()
            total = np.full(tensors["x"].shape, self.sums.get(sequence, 0), np.float32)
            written = np.full(tensors["x"].shape, json.dumps(said).encode(), object)
            outputs = [pb_utils.Tensor("sum", total), pb_utils.Tensor("said", written)]
            answers.append(pb_utils.InferenceResponse(outputs))
        return answers
"""

CONFIG = """
backend: "python"
max_batch_size: %d
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "sum" data_type: TYPE_FP32 dims: 1 }
output { name: "said" data_type: TYPE_STRING dims: 1 }
instance_group { kind: KIND_CPU count: %d }
sequence_batching {
  max_sequence_idle_microseconds: %d
  %s
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 3, 7 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 0.5 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: %s } }
}
"""

ITERATIVE = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            tensors = {each.name(): each.as_numpy() for each in request.inputs()}
            n = tensors["n"]
            n -= 1
            last = n.ravel()[0] <= 0
            if not last:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            said = [n.ravel()[0], tensors["ID"].ravel()[0], request.flags(), len(requests), tensors["START"].ravel()[0]]
            request.get_response_sender().send(
                pb_utils.InferenceResponse([pb_utils.Tensor("said", np.array([said], np.int32))]),
                flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0,
            )
"""

ITERATIVE_CONFIG = """
backend: "python"
max_batch_size: 4
input { name: "n" data_type: TYPE_INT32 dims: 1 }
output { name: "said" data_type: TYPE_INT32 dims: 5 }
model_transaction_policy { decoupled: true }
instance_group { kind: KIND_CPU }
sequence_batching {
  iterative_sequence: true
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
}
"""

SUMS = """
backend: "onnxruntime"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "sum" data_type: TYPE_FP32 dims: 2 }
instance_group { kind: KIND_CPU count: 2 }
sequence_batching {
  %s
  control_input { name: "start" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
  state {
    input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: 2
    %s
  }
}
"""


def onnx_sums() -> bytes:
    """sum = after = x + before + 100 * start."""
    shape = ["batch", 2]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "before")]
    start = helper.make_tensor_value_info("start", TensorProto.FLOAT, ["batch", 1])
    hundred = helper.make_tensor("hundred", TensorProto.FLOAT, [], [100.0])
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["start", "hundred"], ["begins"]),
            helper.make_node("Add", ["x", "before"], ["both"]),
            helper.make_node("Add", ["both", "begins"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["after"]),
        ],
        "sums",
        [*tensors, start],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("sum", "after")],
        [hundred],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write(repository: Path, name: str, config: str, code: str | bytes) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    if isinstance(code, bytes):
        (folder / "model.onnx").write_bytes(code)
    else:
        (folder / "model.py").write_text(code)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    repository = tmp_path_factory.mktemp("repository")
    oldest = "oldest { max_candidate_sequences: 8 }"
    for name, settings in {
        "direct": (4, 1, 60_000_000, "direct { }", "TYPE_UINT64"),
        "oldest": (2, 1, 60_000_000, oldest, "TYPE_STRING"),
        "alone": (0, 1, 60_000_000, "", "TYPE_INT32"),
        "several": (4, 3, 60_000_000, oldest, "TYPE_INT64"),
        "hasty": (1, 1, 300_000, "direct { }", "TYPE_UINT64"),
    }.items():
        write(repository, name, CONFIG % settings, ACCUMULATOR)
    write(repository, "iterative", ITERATIVE_CONFIG, ITERATIVE)
    zero = 'initial_state { name: "zero" data_type: TYPE_FP32 dims: 2 zero_data: true }'
    file = 'initial_state { name: "file" data_type: TYPE_FP32 dims: 2 data_file: "begin" }'
    write(repository, "sums", SUMS % ("direct { }", zero), onnx_sums())
    write(repository, "sums_of_oldest", SUMS % ("oldest { max_candidate_sequences: 16 }", file), onnx_sums())
    states = repository / "sums_of_oldest" / "initial_state"
    states.mkdir()
    (states / "begin").write_bytes(np.array([1000, 2000], "f4").tobytes())
    with running(repository) as started:
        yield started


async def ask(client: HostedClient, x: float, sequence: SequenceId, flags: int = 0, **rest: Any) -> Any:
    """The sum and what else the model was told; of models without a batch, too."""
    assert client.info is not None
    array = np.full((1, 1) if client.info.max_batch_size else (1,), x, "f4")
    found = await infer(client, {"x": array}, details=Details(sequence=sequence, flags=flags), **rest)
    said = json.loads(found["said"].ravel()[0])
    return found["sum"].ravel()[0], said


# --- what a model is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sequence", "told"),
    [("direct", 2**40 + 5, 2**40 + 5), ("oldest", "by name", "by name"), ("oldest", 17, "17"), ("alone", 9, 9)],
)
def test_a_sequence(models: Running, name: str, sequence: SequenceId, told: Any) -> None:
    client = models.model(name)

    async def scenario() -> None:
        for x, flags, total, start, end in (
            (1, START, 1, "7", "0.0"),
            (2, 0, 3, "3", "0.0"),
            (3, END, 6, "3", "0.5"),
            (5, START | END, 5, "7", "0.5"),
        ):
            found, said = await ask(client, x, sequence, flags)
            assert found == total
            assert (said["START"], said["END"], said["READY"], said["id"]) == (start, end, "True", told)

    models.run(scenario())


def test_a_name_for_a_model_that_numbers_them(models: Running) -> None:
    """It gets the same number for the same name, and another one for another."""
    client = models.model("direct")

    async def scenario() -> None:
        ids = [(await ask(client, 1, name, START | END))[1]["id"] for name in ("one", "two", "one")]
        assert ids[0] == ids[2] != ids[1]

    models.run(scenario())


def test_what_is_refused(models: Running) -> None:
    client = models.model("direct")

    async def refused(sequence: SequenceId, rows: int = 1) -> str:
        with pytest.raises(InferenceError) as caught:
            await infer(client, {"x": np.zeros((rows, 1), "f4")}, details=Details(sequence=sequence))
        assert caught.value.code is Code.INVALID_ARGUMENT
        return str(caught.value)

    about = "inference request"
    assert models.run(refused(4)) == (
        f"{about} for sequence 4 to model 'direct' must specify the START flag on the first request of the sequence; "
        "one without a request for 60 s is over"
    )
    assert models.run(refused(0)) == f"{about} to model 'direct' must specify a non-zero or non-empty correlation ID"
    assert models.run(refused(4, 2)) == (
        f"{about} to model 'direct' must specify batch-size 1 due to requirements of sequence batcher"
    )


def test_a_place_without_a_request(models: Running) -> None:
    """In a batch of a model whose sequences have places: READY is false there."""
    client = models.model("direct")

    async def scenario() -> None:
        assert (await ask(client, 1, 1, START))[1]["at"] == 0
        second = (await ask(client, 2, 2, START))[1]
        assert (second["at"], second["rows"], second["READY"]) == (1, 2, "True")
        await ask(client, 1, 1, END)
        assert (await ask(client, 2, 2))[1]["at"] == 1
        assert (await ask(client, 3, 3, START))[1]["at"] == 0
        for sequence in (2, 3):
            await ask(client, 0, sequence, END)

    models.run(scenario())


@pytest.mark.parametrize("name", ["direct", "oldest", "alone", "several"])
def test_many_sequences_at_once(models: Running, name: str) -> None:
    """More than there are slots: each has its own sum, by one process, in its order."""
    client = models.model(name)

    async def sequence(number: int) -> None:
        pids = set()
        count = 3 + number % 4
        for at in range(count):
            flags = (START if at == 0 else 0) | (END if at == count - 1 else 0)
            total, said = await ask(client, number, number + 100, flags)
            assert total == number * (at + 1)
            pids.add(said["pid"])
        assert len(pids) == 1

    async def scenario() -> None:
        await asyncio.gather(*(sequence(number) for number in range(1, 33)))
        assert client.pending == 0

    models.run(scenario())


def test_requests_that_do_not_wait_for_each_other(models: Running) -> None:
    """All are sent at once: they are computed in their order."""
    client = models.model("oldest")

    async def scenario() -> None:
        flags = [START, *[0] * 8, END]
        found = await asyncio.gather(*(ask(client, x, 77, each) for x, each in enumerate(flags)))
        assert [total for total, _ in found] == [sum(range(x + 1)) for x in range(10)]

    models.run(scenario())


def test_instances_share_the_sequences(models: Running) -> None:
    client = models.model("several")

    async def scenario() -> None:
        await eventually(lambda: len(client.workers) == 3)
        await eventually(lambda: all(each._connection for each in client._instances))
        pids = {(await ask(client, 1, number, START | END))[1]["pid"] for number in range(1, 40)}
        assert len(pids) == 3

    models.run(scenario())


# --- ends -------------------------------------------------------------------------------------------------------------


def test_an_idle_sequence_makes_room(models: Running) -> None:
    client = models.model("hasty")

    async def scenario() -> None:
        await ask(client, 1, 1, START)
        assert (await ask(client, 5, 2, START | END))[0] == 5  # there is one slot
        with pytest.raises(InferenceError, match="START flag"):
            await ask(client, 1, 1)

    models.run(scenario())


def test_one_that_waits_too_long_for_a_slot(models: Running) -> None:
    client = models.model("alone")

    async def scenario() -> None:
        await ask(client, 1, 1, START)
        with pytest.raises(InferenceError) as caught:
            await ask(client, 1, 2, START, timeout=0.1)
        assert caught.value.code is Code.UNAVAILABLE
        await ask(client, 1, 1, END)

    models.run(scenario())


def test_a_client_that_leaves(models: Running) -> None:
    """What it had sent and nobody computed is not; the sequence is over, and its slot another's."""
    client = models.model("alone")

    async def scenario() -> None:
        first = asyncio.create_task(ask(client, -2, 1, START))
        second = asyncio.create_task(ask(client, 1, 1))
        third = asyncio.create_task(ask(client, 1, 1))
        await eventually(lambda: client.pending == 3)
        second.cancel()
        await first
        with pytest.raises(InferenceError, match="sequence 1 of model 'alone' was ended: a request"):
            await third
        assert (await ask(client, 3, 2, START | END))[0] == 3

    models.run(scenario())


def test_a_process_that_dies(models: Running) -> None:
    """Its sequences end with an error that says so; what is still to begin is begun by its heir."""
    client = models.model("direct")

    async def scenario() -> None:
        _, said = await ask(client, 1, 1, START)
        await ask(client, 1, 2, START)
        os.kill(said["pid"], signal.SIGSTOP)
        waiting = asyncio.create_task(ask(client, 1, 1))
        await eventually(lambda: client.pending == 1)
        beginning = asyncio.create_task(ask(client, 4, 3, START))
        following = asyncio.create_task(ask(client, 5, 3, END))
        await eventually(lambda: client.pending == 3)
        os.kill(said["pid"], signal.SIGKILL)
        with pytest.raises(InferenceError, match="the process of the model ended") as caught:
            await waiting
        assert caught.value.code in (Code.UNAVAILABLE, Code.INTERNAL)
        assert ((await beginning)[0], (await following)[0]) == (4, 9)
        with pytest.raises(InferenceError, match=r"START flag .*; the process of the model ended meanwhile"):
            await ask(client, 1, 2)
        assert client.state is WorkerState.READY

    models.run(scenario())


def test_a_request_that_ends_the_process(models: Running) -> None:
    client = models.model("oldest")

    async def scenario() -> None:
        await ask(client, 1, "it", START)
        with pytest.raises(InferenceError, match="the model failed"):
            await ask(client, -1, "it")
        assert (await ask(client, 2, "it", START | END))[0] == 2

    models.run(scenario())


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "initial"), [("sums", [0, 0]), ("sums_of_oldest", [1000, 2000])])
def test_states_are_kept_by_sequence(models: Running, name: str, initial: list[float]) -> None:
    client = models.model(name)
    assert client.info is not None
    assert [each.name for each in (*client.info.inputs, *client.info.outputs)] == ["x", "sum"]

    async def sequence(number: int) -> None:
        total = np.array([initial], "f4") + 100
        for at in range(4):
            flags = (START if at == 0 else 0) | (END if at == 3 else 0)
            x = np.array([[number, at]], "f4")
            total += x
            found = await infer(client, {"x": x}, details=Details(sequence=number, flags=flags))
            assert found.keys() == {"sum"}
            np.testing.assert_array_equal(found["sum"], total)

    async def scenario() -> None:
        await asyncio.gather(*(sequence(number) for number in range(1, 25)))

    models.run(scenario())


# --- again and again --------------------------------------------------------------------------------------------------


def test_a_request_is_a_sequence(models: Running) -> None:
    client = models.model("iterative")

    async def one(n: int) -> list[list[int]]:
        return [each["said"][0].tolist() async for each in stream(client, {"n": np.array([[n]], np.int32)})]

    async def scenario() -> None:
        found = await asyncio.gather(*(one(n) for n in (3, 5, 1, 4, 6, 2)))
        for n, results in zip((3, 5, 1, 4, 6, 2), found, strict=True):
            assert [each[0] for each in results] == list(range(n - 1, -1, -1))
            assert len({each[1] for each in results}) == 1
            assert [each[2] for each in results] == [START] + [0] * (n - 1)
            assert [each[4] for each in results] == [1] + [0] * (n - 1)
        assert len({results[0][1] for results in found}) == 6
        assert max(each[3] for results in found for each in results) > 1

    models.run(scenario())


# --- configurations ---------------------------------------------------------------------------------------------------

START_CONTROL = "control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] }"


@pytest.mark.parametrize(
    ("batching", "words"),
    [
        (f"control_input {{ {START_CONTROL} }}", "sequence batching control tensor must have a name for m"),
        (
            f'control_input {{ name: "a" {START_CONTROL} }} control_input {{ name: "a" }}',
            "sequence batching control tensor 'a' is specified for multiple control kinds for m",
        ),
        (
            f'control_input {{ name: "a" {START_CONTROL} }} control_input {{ name: "b" {START_CONTROL} }}',
            "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m",
        ),
        (
            'control_input { name: "a" control { kind: CONTROL_SEQUENCE_END } }',
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for "
            "CONTROL_SEQUENCE_END for m",
        ),
        (
            'control_input { name: "a" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0 ] } }',
            "sequence batching control 'int32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_END for m",
        ),
        (
            'control_input { name: "a" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } }',
            "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. Allowed data types are TYPE_UINT64, "
            "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
        ),
        (
            "oldest { preferred_batch_size: 9 }",
            "sequence batching preferred batch size must be <= max batch size for m",
        ),
        (
            "direct { minimum_slot_utilization: 2 }",
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
        ),
        (
            'state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: -1 initial_state { name: "i" '
            "data_type: TYPE_FP32 dims: -1 zero_data: true } }",
            "'initial_state' field for state input name 's' contains variable dimensions.",
        ),
        (
            'state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 2 initial_state { name: "i" '
            "data_type: TYPE_FP32 dims: 3 zero_data: true } }",
            "'initial_state' dim for input name 's' doesn't match 'state' dim description. 3 != 2",
        ),
    ],
)
def test_a_configuration_that_cannot_work(tmp_path: Path, batching: str, words: str) -> None:
    config = SUMS.partition("sequence_batching")[0] + f"sequence_batching {{ {batching} }}"
    write(tmp_path, "m", config, onnx_sums())
    with pytest.raises(ConfigError) as caught:
        plan_model(ModelFolder("m", tmp_path / "m"))
    assert str(caught.value) == words
