"""Ensembles: tensors go from model to model, and whatever happens to a step is said to whoever asked."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.deployments import Deployments
from octavo.deployments.hosted import HostedDeployment
from octavo.deployments.step_models import OfferedModels
from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.ensemble import Ensemble, EnsembleStep, check_flow
from octavo.hosting.ensemble_client import EnsembleClient
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference
from octavo.worker.control import WorkerState
from tests.hosting.ensembles import ensemble, model, offered, specs, step
from tests.hosting.served import encoded, eventually, infer
from tests.server.inference.fake import fake


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def floats(*values: float) -> np.ndarray:
    return np.array(values, "f4")


def add(name: str, number: float, **rest: Any) -> HostedDeployment:
    return model(name, lambda x: {"y": x + number}, **rest)


CHAIN = ensemble("chain", step("one", {"x": "x"}, {"y": "middle"}), step("ten", {"x": "middle"}, {"y": "y"}))


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_chain() -> None:
    async def scenario() -> None:
        _, [client] = offered(add("one", 1), add("ten", 10), chain=CHAIN)
        found = await infer(client, {"x": floats(1, 2)})
        assert found["y"].tolist() == [12, 13]
        assert client.pending == 0
        seen = client.statistics
        assert (seen.success, seen.failure, seen.inferences, seen.executions) == (1, 0, 1, 1)
        assert (seen.queue, seen.compute) == (2000, 4000)  # of two models, each of which says 1000 and 2000

    run(scenario())


def test_a_request_like_one_before() -> None:
    """Each has its own bytes, whether others of its shapes have come before; what does not fit, never does."""
    whole = ensemble(
        "whole",
        step("parts", {"a": "a", "b": "b"}, {"sum": "sum", "difference": "difference"}),
        step("joins", {"left": "difference", "right": "sum"}, {"y": "y"}),
        inputs=specs("a", "b"),
    )
    parts = model(
        "parts", lambda a, b: {"sum": a + b, "difference": a - b}, specs("a", "b"), specs("sum", "difference")
    )
    joins = model("joins", lambda left, right: {"y": left * 10 + right}, specs("left", "right", dims=(2,)))

    async def scenario() -> None:
        _, [client] = offered(parts, joins, whole=whole)
        for number in range(3):
            a, b = floats(number, 7), floats(5, number)
            found = await infer(client, {"a": a, "b": b})
            assert found["y"].tolist() == ((a - b) * 10 + a + b).tolist()
            found = await infer(client, {"b": b, "a": a})
            assert found["y"].tolist() == ((a - b) * 10 + a + b).tolist()
            with pytest.raises(InferenceError, match=r"step 1 of model 'joins': unexpected shape"):
                await infer(client, {"a": floats(1, 2, 3), "b": floats(1, 2, 3)})

    run(scenario())


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Ensemble, list[HostedDeployment], tuple[str, ...]]:
    """Any graph of models that add up their inputs with a number of their own, and some of its outputs."""
    tensors = [f"in{number}" for number in range(draw(st.integers(1, 3)))]
    inputs = specs(*tensors)
    steps, models = [], []
    for number in range(draw(st.integers(1, 6))):
        taken = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3))
        given_ = [f"t{number}.{each}" for each in range(draw(st.integers(1, 2)))]
        names = [f"i{each}" for each in range(len(taken))]

        def function(number: int = number, count: int = len(given_), **arrays: np.ndarray) -> dict[str, np.ndarray]:
            return {f"o{each}": sum(arrays.values()) * (each + 1) + number for each in range(count)}

        outputs = [f"o{each}" for each in range(len(given_))]
        models.append(model(f"m{number}", function, specs(*names), specs(*outputs)))
        steps.append(step(f"m{number}", dict(zip(names, taken, strict=True)), dict(zip(outputs, given_, strict=True))))
        tensors += given_
    made = [each for each in tensors if each.startswith("t")]
    used = {tensor for each in steps for tensor in each.inputs.values()}
    whole = ensemble(
        "any",
        *draw(st.permutations(steps)),
        inputs=tuple(spec for spec in inputs if spec.name in used),
        outputs=specs(*made),
    )
    return whole, models, tuple(draw(st.sets(st.sampled_from(made))))


def needed(whole: Ensemble, wanted: tuple[str, ...]) -> set[str]:
    names = set(wanted)
    for _ in whole.steps:
        for each in whole.steps:
            if names & set(each.outputs.values()):
                names |= set(each.inputs.values())
    return {each.model for each in whole.steps if names & set(each.outputs.values())}


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_any_graph(case: tuple[Ensemble, list[HostedDeployment], tuple[str, ...]]) -> None:
    """Its outputs are those of its models called by hand; only models that are needed compute, each once."""
    whole, models, wanted = case
    check_flow(whole)
    functions = {each.name: each for each in models}

    async def scenario() -> None:
        _, [client] = offered(*models, whole=whole)
        values = {spec.name: floats(number + 1, 2) for number, spec in enumerate(whole.inputs)}
        found = await infer(client, values, outputs=wanted)
        names = wanted or tuple(spec.name for spec in whole.outputs)
        computed = {each.name for each in models if fake(each).statistics.success}
        assert computed == needed(whole, names)
        assert all(fake(each).statistics.success <= 1 for each in models)
        waiting = list(whole.steps)
        while waiting:
            each = next(each for each in waiting if values.keys() >= set(each.inputs.values()))
            waiting.remove(each)
            result = await infer(fake(functions[each.model]), {n: values[t] for n, t in each.inputs.items()})
            values |= {tensor: result[name] for name, tensor in each.outputs.items()}
        assert found.keys() == set(names)
        for name in names:
            np.testing.assert_array_equal(found[name], values[name])

    run(scenario())


def test_steps_compute_at_once() -> None:
    """Those that do not need each other."""
    both = ensemble(
        "both",
        step("left", {"x": "x"}, {"y": "a"}),
        step("right", {"x": "x"}, {"y": "b"}),
        step("sum", {"a": "a", "b": "b"}, {"y": "y"}),
    )

    async def scenario() -> None:
        models = add("left", 1), add("right", 2), model("sum", lambda a, b: {"y": a + b}, specs("a", "b"))
        _, [client] = offered(*models, both=both)
        for each in models[:2]:
            fake(each).hold = asyncio.Event()
        task = asyncio.create_task(infer(client, {"x": floats(1)}))
        await eventually(lambda: all(fake(each).waiting for each in models[:2]))
        for each in models[:2]:
            fake(each).hold.set()  # type: ignore[union-attr]
        assert (await task)["y"].tolist() == [5]

    run(scenario())


def test_a_model_may_be_there_twice() -> None:
    twice = ensemble("twice", step("one", {"x": "x"}, {"y": "a"}), step("one", {"x": "a"}, {"y": "y"}))

    async def scenario() -> None:
        _, [client] = offered(add("one", 1), twice=twice)
        assert (await infer(client, {"x": floats(1)}))["y"].tolist() == [3]

    run(scenario())


def test_an_ensemble_of_ensembles() -> None:
    outer = ensemble("outer", step("chain", {"x": "x"}, {"y": "a"}), step("one", {"x": "a"}, {"y": "y"}))

    async def scenario() -> None:
        _, [_, client] = offered(add("one", 1), add("ten", 10), chain=CHAIN, outer=outer)
        assert (await infer(client, {"x": floats(1)}))["y"].tolist() == [13]

    run(scenario())


def test_inputs_that_need_not_be_there() -> None:
    """An optional input of the ensemble is that of the model; an output that a model leaves out is none."""
    inputs = (*specs("x"), *specs("bias", optional=True))
    whole = ensemble(
        "whole",
        step("first", {"x": "x", "bias": "bias"}, {"y": "a", "z": "b"}),
        step("second", {"x": "a", "bias": "b"}, {"y": "y"}),
        inputs=inputs,
    )

    def first(x: np.ndarray, bias: np.ndarray | float = 5) -> dict[str, np.ndarray]:
        return {"y": x + bias} if x[0] else {"y": x + bias, "z": x + 100}

    async def scenario() -> None:
        models = (
            model("first", first, inputs, specs("y", "z")),
            model("second", lambda x, bias=0: {"y": x * 2 + bias}, inputs),
        )
        _, [client] = offered(*models, whole=whole)
        assert (await infer(client, {"x": floats(1)}))["y"].tolist() == [12]
        assert (await infer(client, {"x": floats(1), "bias": floats(1)}))["y"].tolist() == [4]
        assert (await infer(client, {"x": floats(0)}))["y"].tolist() == [110]

    run(scenario())


ROW, ROWS = (-1,), (-1, -1)


@pytest.mark.parametrize(
    ("whole", "first", "second", "shape"),
    [
        ((4, ROW), (4, ROW), (4, ROW), (3, 2)),
        ((4, ROW), (0, ROWS), (4, ROW), (3, 2)),
        ((4, ROW), (4, ROW), (0, ROWS), (3, 2)),
        ((0, ROWS), (4, ROW), (0, ROWS), (3, 2)),
        ((0, ROW), (4, ROW), (0, ROW), (2,)),
        ((4, ROW), (0, ROW), (4, ROW), (1, 2)),
    ],
)
def test_models_with_and_without_a_batch(whole: Any, first: Any, second: Any, shape: tuple[int, ...]) -> None:
    """A batch may be a dimension of a model that knows none; one of 1 comes and goes."""

    def made(name: str, kind: tuple[int, tuple[int, ...]]) -> HostedDeployment:
        return model(name, lambda x: {"y": x + 1}, specs("x", dims=kind[1]), specs("y", dims=kind[1]), batch=kind[0])

    async def scenario() -> None:
        tensors = {"inputs": specs("x", dims=whole[1]), "outputs": specs("y", dims=whole[1])}
        chain = ensemble("chain", *CHAIN.steps, max_batch_size=whole[0], **tensors)
        _, [client] = offered(made("one", first), made("ten", second), chain=chain)
        found = (await infer(client, {"x": np.zeros(shape, "f4")}))["y"]
        np.testing.assert_array_equal(found, np.full(shape, 2, "f4"), strict=True)

    run(scenario())


def test_what_a_request_says_reaches_every_step() -> None:
    async def scenario() -> None:
        models = add("one", 1), add("ten", 10)
        _, [client] = offered(*models, chain=CHAIN)
        await infer(client, {"x": floats(1)}, priority=3, timeout=7.0)
        for each in models:
            seen = fake(each).seen
            assert seen is not None
            assert (seen.priority, seen.timeout) == (3, 7.0)

    run(scenario())


# --- many results -----------------------------------------------------------------------------------------------------


def counting(name: str, results: int) -> HostedDeployment:
    """Gives x, x + 1, …"""
    counters: dict[bytes, Iterator[int]] = {}

    def function(x: np.ndarray) -> dict[str, np.ndarray]:
        counter = counters.setdefault(x.tobytes(), iter(range(results)))
        return {"y": x + next(counter)}

    return model(name, function, results=results)


def test_each_result_goes_on_by_itself() -> None:
    async def scenario() -> None:
        _, [client] = offered(counting("one", 5), add("ten", 10), chain=CHAIN)
        info = client.info
        assert info is not None
        assert info.streams
        found = [each async for each in client.stream(asked(1))]
        assert [np.frombuffer(each["y"].data, "f4").tolist() for each in found] == [[11], [12], [13], [14], [15]]
        assert not any(each.last for each in found[:-1])

    run(scenario())


def test_the_last_result_is_known_where_nothing_is_computed_any_more() -> None:
    async def scenario() -> None:
        ten = add("ten", 10)
        _, [client] = offered(counting("one", 3), ten, chain=CHAIN)
        held = fake(ten)
        held.hold = asyncio.Event()
        results = client.stream(asked(1))
        first = asyncio.ensure_future(anext(results))
        await eventually(lambda: held.waiting == 3)
        await asyncio.sleep(0)  # for the step before to end
        held.hold.set()
        found = [await first, *[each async for each in results]]
        assert [each.last for each in found] == [False, False, True]

    run(scenario())


def test_results_of_results() -> None:
    async def scenario() -> None:
        _, [client] = offered(counting("one", 3), counting("ten", 2), chain=CHAIN)
        found = [each async for each in client.stream(asked(1))]
        assert sorted(np.frombuffer(each["y"].data, "f4")[0] for each in found) == [1, 2, 2, 3, 3, 4]
        assert not any(each.last for each in found[:-1])

    run(scenario())


def test_no_result_is_an_end() -> None:
    async def scenario() -> None:
        _, [client] = offered(counting("one", 0), add("ten", 10), chain=CHAIN)
        assert [each async for each in client.stream(asked(1))] == []
        assert client.statistics.success == 1

    run(scenario())


def test_results_keep_their_order() -> None:
    """Whichever of them is computed first by the next step."""

    async def scenario() -> None:
        last = add("ten", 10)
        _, [client] = offered(counting("one", 3), last, chain=CHAIN)
        fake(last).hold = asyncio.Event()
        found: list[float] = []

        async def read() -> None:
            found.extend([np.frombuffer(each["y"].data, "f4")[0] async for each in client.stream(asked(1))])

        task = asyncio.create_task(read())
        await eventually(lambda: fake(last).waiting == 3)
        running = list(fake(last)._running.values())
        assert len(running) == 3
        fake(last)._running = dict(reversed(fake(last)._running.items()))
        fake(last).hold.set()  # type: ignore[union-attr]
        await task
        assert found == [11, 12, 13]

    run(scenario())


def test_a_step_that_is_busy_holds_up_the_one_before() -> None:
    """`max_inflight_requests`: results are read only as fast as they are taken."""

    async def scenario() -> None:
        first, last = counting("one", 50), add("ten", 10)
        bounded = ensemble("chain", *CHAIN.steps, max_inflight_requests=2)
        _, [client] = offered(first, last, chain=bounded)
        hold = fake(last).hold = asyncio.Event()
        results = client.stream(asked(1))
        task = asyncio.create_task(anext(results))
        await eventually(lambda: fake(last).waiting == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert fake(last).waiting == 2
        hold.set()
        found = [await task, *[each async for each in results]]
        assert [np.frombuffer(each["y"].data, "f4")[0] for each in found] == [11 + each for each in range(50)]

    run(scenario())


# --- what goes wrong --------------------------------------------------------------------------------------------------


def asked(*values: float, **rest: Any) -> Inference:
    return Inference(inputs={"x": encoded(floats(*values))}, **rest)


def test_an_error_names_its_step() -> None:
    def shrink(x: np.ndarray) -> dict[str, np.ndarray]:
        return {"y": np.concatenate([x, x])}

    async def scenario() -> None:
        narrow = model("ten", lambda x: {"y": x}, specs("x", dims=(3,)), specs("y", dims=(3,)))
        _, [client] = offered(model("one", shrink), narrow, chain=CHAIN)
        with pytest.raises(InferenceError) as caught:
            await client.infer(asked(1))
        assert str(caught.value) == (
            "in ensemble 'chain', step 1 of model 'ten': unexpected shape for input 'x' for model 'ten'. Expected [3], "
            "got [2]. Its input 'x' is 'middle', which step 0 of model 'one' gave."
        )
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert (client.statistics.failure, client.pending) == (1, 0)

    run(scenario())


def test_a_failed_step_ends_the_others() -> None:
    both = ensemble(
        "both",
        step("left", {"x": "x"}, {"y": "a"}),
        step("right", {"x": "x"}, {"y": "b"}),
        outputs=specs("a", "b"),
    )

    async def scenario() -> None:
        left, right = add("left", 1), add("right", 2)
        _, [client] = offered(left, right, both=both)
        fake(left).hold = asyncio.Event()
        fake(right).error = InferenceError("it fell over", Code.INTERNAL)
        with pytest.raises(InferenceError, match=r"^in ensemble 'both', step 1 of model 'right': it fell over$"):
            await client.infer(asked(1))
        assert fake(left).cancelled == 1
        assert fake(left).pending == 0

    run(scenario())


def test_a_client_that_leaves_ends_every_step() -> None:
    async def scenario() -> None:
        one, many = add("one", 1), counting("many", 3)
        whole = ensemble("whole", step("one", {"x": "x"}, {"y": "y"}))
        stream = ensemble("stream", step("many", {"x": "x"}, {"y": "y"}))
        _, clients = offered(one, many, whole=whole, stream=stream)
        reading = (clients[0].infer(asked(1)), anext(clients[1].stream(asked(1))))
        for client, work, behind in zip(clients, reading, (fake(one), fake(many)), strict=True):
            behind.hold = asyncio.Event()
            task = asyncio.ensure_future(work)
            await eventually(lambda behind=behind: behind.waiting == 1)  # type: ignore[misc]
            task.cancel()
            await asyncio.wait([task])
            await eventually(lambda behind=behind: not behind.pending)  # type: ignore[misc]
            assert (behind.cancelled, client.pending) == (1, 0)
            assert (client.statistics.canceled, client.statistics.failure) == (1, 1)

    run(scenario())


def test_requests_wait_for_their_turn() -> None:
    """In their order; one that is given up waits no more, and one that waits for too long is told so."""

    async def scenario() -> None:
        slow = add("one", 1)
        bounded = ensemble("chain", *CHAIN.steps, max_inflight_requests=1)
        _, [client] = offered(slow, add("ten", 10), chain=bounded)
        hold = fake(slow).hold = asyncio.Event()
        order: list[float] = []

        async def one(value: float, **rest: Any) -> None:
            await client.infer(asked(value, **rest))
            order.append(value)

        tasks = [asyncio.create_task(one(value)) for value in range(6)]
        late = asyncio.create_task(one(9, timeout=0.05))
        await eventually(lambda: client.pending == 7)
        assert fake(slow).waiting == 1
        with pytest.raises(InferenceError, match="step 0 of model 'one': Request timeout expired") as caught:
            await late
        assert caught.value.code is Code.UNAVAILABLE
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])
        assert client.pending == 5
        hold.set()
        await asyncio.wait(tasks)
        assert order == [0, 1, 3, 4, 5]

    run(scenario())


def test_many_that_are_refused_at_once() -> None:
    """Each lets the next one in, which fails as well: that must not go ever deeper."""

    async def scenario() -> None:
        first, last = add("one", 1), model("ten", lambda x: {"y": x}, specs("x", dims=(2,)))
        bounded = ensemble(
            "chain", step("one", {"x": "x"}, {"y": "m"}), step("ten", {"x": "m"}, {"y": "y"}), max_inflight_requests=1
        )
        _, [client] = offered(first, last, chain=bounded)
        answers = await asyncio.gather(*(client.infer(asked(1)) for _ in range(3000)), return_exceptions=True)
        assert all(isinstance(each, InferenceError) for each in answers)
        assert (client.pending, client.statistics.failure) == (0, 3000)

    run(scenario())


# --- what it is made of -----------------------------------------------------------------------------------------------


def test_it_is_as_ready_as_its_models() -> None:
    async def scenario() -> None:
        one, ten = add("one", 1), add("ten", 10)
        _, [client] = offered(one, ten, chain=CHAIN)
        assert client.state is WorkerState.READY
        for state in (WorkerState.LOADING, WorkerState.RESTARTING):
            fake(one).state = state
            assert client.state is state
        fake(one).state, fake(one).failure = WorkerState.FAILED, "it is broken"
        assert client.state is WorkerState.FAILED
        assert client.failure == (
            "ensemble 'chain' depends on 'one' which has no loaded version. Model 'one' loading failed with error: it "
            "is broken"
        )
        with pytest.raises(InferenceError, match="the model failed: ensemble 'chain' depends on 'one'"):
            await client.infer(asked(1))

    run(scenario())


def test_a_model_that_is_not_there() -> None:
    async def scenario() -> None:
        _, [client] = offered(add("one", 1), chain=CHAIN)
        assert client.state is WorkerState.FAILED
        assert client.failure == "ensemble 'chain' depends on 'ten' which has no loaded version"

    run(scenario())


def test_ensembles_in_a_circle() -> None:
    async def scenario() -> None:
        some = ensemble("some", step("other", {"x": "x"}, {"y": "y"}))
        other = ensemble("other", step("some", {"x": "x"}, {"y": "y"}))
        _, clients = offered(some=some, other=other)
        for client in clients:
            assert client.state is WorkerState.FAILED
            assert "circular dependency between ensembles" in str(client.failure)

    run(scenario())


def test_a_reload_of_a_model() -> None:
    """A request ends on what it began with, which stays until then; the next ones take what is new."""

    async def scenario() -> None:
        one, old, new = add("one", 1), add("ten", 10), add("ten", 1000)
        deployments = Deployments([one, old])
        client = EnsembleClient(CHAIN, OfferedModels(deployments))
        hold = fake(one).hold = asyncio.Event()
        task = asyncio.create_task(infer(client, {"x": floats(1)}))
        await eventually(lambda: fake(one).waiting == 1)
        deployments.offer([one, new])
        gone = asyncio.create_task(deployments.unused(old))
        following = asyncio.create_task(infer(client, {"x": floats(1)}))
        await asyncio.sleep(0.01)
        assert not gone.done()
        hold.set()
        assert (await task)["y"].tolist() == [12]
        assert (await following)["y"].tolist() == [1002]
        await gone
        assert not deployments.uses

    run(scenario())


def test_a_reload_that_fits_no_more() -> None:
    async def scenario() -> None:
        one, ten = add("one", 1), add("ten", 10)
        deployments = Deployments([one, ten])
        client = EnsembleClient(CHAIN, OfferedModels(deployments))
        assert client.state is WorkerState.READY
        deployments.offer([one, model("ten", lambda x: {"y": x}, specs("x", datatype=Datatype.INT32))])
        assert client.state is WorkerState.FAILED
        assert client.failure == (
            "in ensemble chain, ensemble tensor middle: inconsistent data type: TYPE_FP32 is inferred from model one "
            "while TYPE_INT32 is inferred from model ten"
        )

    run(scenario())


X_TO_Y = ({"x": "x"}, {"y": "y"})


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "must specify 'step' for ensemble 'e'"),
        ([step("", *X_TO_Y)], "must specify 'model_name' in step 0 of ensemble 'e'"),
        ([step("m", {}, {"y": "y"})], "must specify 'input_map' in step 0 of ensemble 'e'"),
        ([step("m", {"x": "x"}, {})], "must specify 'output_map' in step 0 of ensemble 'e'"),
        (
            [step("m", *X_TO_Y), step("n", *X_TO_Y)],
            "ensemble tensor 'y' can appear in an output map only once for ensemble 'e' step 1",
        ),
        ([step("m", {"x": "z"}, {"y": "y"})], "ensemble input 'x' for ensemble e is not used"),
        ([step("m", {"x": "x"}, {"y": "z"})], "ensemble output 'y' for ensemble e is not used"),
        (
            [step("m", {"x": "x", "w": "w"}, {"y": "y"})],
            "output 'y' for ensemble 'e' is not written: at least one of its depending tensors, 'w', is not connected",
        ),
        (
            [step("m", {"x": "x", "w": "w"}, {"y": "y"}), step("n", {"x": "y"}, {"y": "w"})],
            "output 'y' for ensemble 'e' is not written: at least one of its depending tensors, 'w', is not connected",
        ),
        ([step("m", *X_TO_Y), step("n", {"x": "x"}, {"y": "z"})], "ensemble tensor 'z' is unused in ensemble 'e'"),
    ],
)
def test_a_graph_that_cannot_work(steps: list[EnsembleStep], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_flow(ensemble("e", *steps))
    assert str(caught.value) == words


def failure_of(whole: Ensemble, *models: HostedDeployment) -> str | None:
    async def scenario() -> str | None:
        _, [client] = offered(*models, whole=whole)
        return client.failure

    return run(scenario())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("whole", "models", "words"),
    [
        (
            ensemble("e", step("m", {"wrong": "x"}, {"y": "y"})),
            [add("m", 1)],
            "in ensemble e, ensemble tensor x is mapping to non-existing input wrong in model m",
        ),
        (
            ensemble("e", step("m", {"x": "x"}, {"wrong": "y"})),
            [add("m", 1)],
            "in ensemble e, ensemble tensor y is mapped from non-existing output wrong in model m",
        ),
        (
            ensemble("e", step("m", *X_TO_Y)),
            [model("m", lambda x, z: {"y": x}, specs("x", "z"))],
            "in ensemble e, input z in model m is not mapped to any ensemble tensors",
        ),
        (
            ensemble("e", step("m", *X_TO_Y), max_batch_size=8),
            [add("m", 1, batch=4)],
            "ensemble e allows maximum batch size 8, but it contains model m which only allows maximum batch size to "
            "be 4",
        ),
        (
            ensemble("e", step("m", *X_TO_Y), inputs=specs("x", dims=(3,))),
            [model("m", lambda x: {"y": x}, specs("x", dims=(4,)))],
            "in ensemble e, ensemble tensor x: inconsistent shape: [3] is inferred from model e while [4] is inferred "
            "from model m",
        ),
        (
            ensemble("e", step("m", *X_TO_Y), outputs=specs("y", dims=(2, 2)), max_batch_size=4),
            [add("m", 1, batch=4)],
            "in ensemble e, ensemble tensor y: inconsistent shape: [-1,2,2] is inferred from model e while [-1,-1] is "
            "inferred from model m",
        ),
        (
            ensemble(
                "e",
                step("s", {"x": "x"}, {"y": "many"}),
                step("m", {"x": "x", "z": "many"}, {"y": "y"}),
            ),
            [counting("s", 2), model("m", lambda x, z: {"y": x}, specs("x", "z"))],
            "in ensemble e, step of model 'm' receives inputs originated from different decoupled models",
        ),
    ],
)
def test_models_that_do_not_fit(whole: Ensemble, models: list[HostedDeployment], words: str) -> None:
    check_flow(whole)
    assert failure_of(whole, *models) == words
