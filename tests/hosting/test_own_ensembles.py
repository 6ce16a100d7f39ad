"""Ensembles of somebody's own, in a process of theirs; what they ask computes in this one."""

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pytest

from octavo.deployments import Deployments
from octavo.deployments.hosted import HostedDeployment
from octavo.deployments.step_models import OfferedModels
from octavo.hosting.client import HostedClient
from octavo.hosting.config import HostingConfig
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BodyCall, Inference
from octavo.hosting.local import LocalModels
from octavo.hosting.signature import TensorSpec
from octavo.hosting.wire import Details
from octavo.worker.control import WorkerState
from octavo.worker.supervisor import RestartPolicy
from tests.hosting.ensembles import model, specs
from tests.hosting.served import encoded, eventually
from tests.server.inference.fake import FakeClient, fake

CODE = Path(__file__).parent / "own_ensembles.py"

T = TypeVar("T")

FORMS = tuple(
    TensorSpec(name=name, datatype=datatype, dims=dims, optional=True, value=value)
    for name, datatype, dims, value in (
        ("text", Datatype.BYTES, (1,), "str"),
        ("number", Datatype.INT64, (1,), "int"),
        ("flags", Datatype.BOOL, (-1,), "list[bool]"),
        ("object", Datatype.BYTES, (1,), "json"),
        ("file", Datatype.BYTES, (1,), "bytes"),
        ("pixels", Datatype.UINT8, None, ""),
        ("strings", Datatype.BYTES, None, ""),
        ("left_out", Datatype.FP32, (1,), ""),
    )
)


GIVEN = tuple(replace(each, optional=False) for each in FORMS)


def objects(*values: bytes) -> np.ndarray:
    return np.array(values, object)


def made() -> list[HostedDeployment]:
    """What the ensembles ask."""
    counter = itertools.count()
    return [
        model("add", lambda x: {"y": x + 1}),
        model("slow", lambda x: {"y": x * 10}),
        model("many", lambda x: {"y": x + next(counter)}, results=4),
        model("none", lambda x: {"y": x}, results=0),
        model("narrow", lambda x: {"y": x}, specs("x", dims=(2,))),
        model(
            "batched",
            lambda x, name: {"y": x * 2, "label": np.array([[each + b"!"] for each in name[:, 0]], object)},
            (*specs("x"), *specs("name", datatype=Datatype.BYTES, dims=(1,), value="str")),
            (*specs("y"), *specs("label", datatype=Datatype.BYTES, dims=(1,), value="str")),
            batch=4,
        ),
        model("forms", lambda **given: given, FORMS, GIVEN),
        model(
            "mojibake",
            lambda x: {"y": objects(b"\xff")},
            specs("x"),
            specs("y", datatype=Datatype.BYTES, value="str"),
        ),
    ]


class Site:
    """Ensembles in processes, on an event loop in a thread. Attributes: fakes: what they ask, by name."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.steps = made()
        self.fakes: dict[str, FakeClient] = {each.name: fake(each) for each in self.steps}
        self.run(self._start())

    async def _start(self) -> None:
        self.deployments = Deployments()
        self._models = LocalModels(OfferedModels(self.deployments), policy=RestartPolicy(first_delay=0.0))
        names = ("acts", "pieces")
        self.ensembles: dict[str, HostedClient] = {
            name: self._models.start(name, HostingConfig(model=f"{CODE}:{name}")) for name in names
        }
        self.made = [HostedDeployment(name=name, client=self.ensembles[name], created=1) for name in names]
        self.deployments.offer([*self.steps, *self.made])
        await asyncio.gather(*(each.ready() for each in self.ensembles.values()))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of some work on the loop."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, 30), self.loop).result(60)

    async def act(self, do: str, value: float = 1.0, **options: Any) -> Any:
        """What an ensemble says when it is told to do something."""
        body = orjson.dumps({"do": do, "value": value})
        call = BodyCall(media_type="application/json", body=body, **options)
        return orjson.loads((await self.ensembles["acts"].call(call)).data)

    async def pieces(self, do: str, value: float = 1.0) -> AsyncIterator[Any]:
        """The same, piece by piece."""
        call = BodyCall(media_type="application/json", body=orjson.dumps({"do": do, "value": value}))
        async for each in self.ensembles["pieces"].stream_call(call):
            yield orjson.loads(each.data)

    async def refusal(self, do: str) -> InferenceError:
        """Why it does not."""
        with pytest.raises(InferenceError) as caught:
            await self.act(do)
        return caught.value

    def reset(self) -> None:
        """As at the beginning."""
        for each in self.fakes.values():
            each.hold, each.error, each.cancelled, each.seen = None, None, 0, None

    def close(self) -> None:
        """End everything."""
        self.run(self._models.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    os.environ["ENSEMBLE_FOLDER"] = str(tmp_path_factory.mktemp("ensembles"))
    site = Site()
    try:
        yield site
    finally:
        site.close()
        del os.environ["ENSEMBLE_FOLDER"]


@pytest.fixture
def site(everything: Site) -> Site:
    everything.reset()
    return everything


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("one", [2.0]),
        ("chain", [3.0]),
        ("begun_at_once", [[2.0], [10.0]]),
        ("gathered", [[10.0], [20.0]]),
        ("until_small", [4, 5.0]),
        ("twice", [[2.0]] * 4),
        ("never_awaited", [2.0]),
        ("of_several", {"y": [[2.0], [4.0]], "label": ["a!", "b!"]}),
        ("some_outputs", "a"),
    ],
)
def test_a_function_of_models(site: Site, do: str, said: Any) -> None:
    assert site.run(site.act(do)) == said


def test_values_have_the_forms_that_models_of_python_give_them(site: Site) -> None:
    assert site.run(site.act("forms", 7.0)) == {
        "text": "é",
        "number": 7,
        "flags": [True, False],
        "object": {"a": [1, None], "b": "c"},
        "file": "/w==",
        "pixels": [[1, 2], [3, 4]],
        "strings": True,
    }
    seen = site.fakes["forms"].seen
    assert seen is not None
    assert {name: (each.datatype.value, each.shape, bytes(each.data)) for name, each in seen.inputs.items()} == {
        "text": ("BYTES", (1,), b"\x02\0\0\0\xc3\xa9"),
        "number": ("INT64", (1,), (7).to_bytes(8, "little")),
        "flags": ("BOOL", (2,), b"\1\0"),
        "object": ("BYTES", (1,), b'\x16\0\0\0{"a":[1,null],"b":"c"}'),
        "file": ("BYTES", (1,), b"\1\0\0\0\xff"),
        "pixels": ("UINT8", (2, 2), bytes([1, 2, 3, 4])),
        "strings": ("BYTES", (1, 2), b"\1\0\0\0a\1\0\0\0b"),
    }


def test_steps_compute_at_once(site: Site) -> None:
    async def scenario() -> None:
        hold = site.fakes["slow"].hold = asyncio.Event()
        task = asyncio.create_task(site.act("gathered"))
        await eventually(lambda: site.fakes["slow"].waiting == 2)
        hold.set()
        assert await task == [[10.0], [20.0]]

    site.run(scenario())


def test_what_a_request_says_reaches_its_steps(site: Site) -> None:
    async def scenario() -> None:
        inputs = {"do": encoded(objects(b"one")), "value": encoded(np.array([1.0]))}
        asked = Inference(inputs=inputs, priority=2, timeout=7.0, details=Details(id="mine"))
        await site.ensembles["acts"].infer(asked)
        seen = site.fakes["add"].seen
        assert seen is not None
        assert (seen.priority, seen.timeout) == (2, 7.0)

    site.run(scenario())


def test_pieces_go_on_as_they_come(site: Site) -> None:
    async def scenario() -> None:
        assert len([each async for each in site.pieces("each")]) == 4
        first = [each async for each in site.pieces("mapped", 100.0)]
        assert [each[0] - first[0][0] for each in first] == [0, 1, 2, 3]
        pieces = site.pieces("first")
        hold = site.fakes["slow"].hold = asyncio.Event()
        await anext(pieces)
        assert await anext(pieces) == "over"
        hold.set()
        assert [each async for each in pieces] == []

    site.run(scenario())


def test_who_reads_no_further_has_it_computed_no_further(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    many = site.fakes["many"]
    compute = many._compute

    def first_alone(inputs: Any) -> Any:
        many.hold = asyncio.Event()  # for those that follow
        return compute(inputs)

    monkeypatch.setattr(many, "_compute", first_alone)

    async def scenario() -> None:
        site.fakes["slow"].hold = asyncio.Event()
        pieces = site.pieces("first")
        await anext(pieces)
        assert await anext(pieces) == "over"
        await eventually(lambda: many.cancelled == 1)
        assert many.pending == 0
        await pieces.aclose()  # type: ignore[attr-defined]

    site.run(scenario())


# --- what goes wrong --------------------------------------------------------------------------------------------------


def of_step(number: int, name: str, why: str) -> str:
    return f"in ensemble 'acts', step {number} of model '{name}': {why}"


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("an unknown input", of_step(0, "add", "the model 'add' has no input 'z'; there are: x")),
        ("a missing input", of_step(0, "add", "the model 'add' lacks its input 'x', which must be given")),
        (
            "another type",
            of_step(0, "add", "the model 'add' is given a wrong input 'x': it is FP32, and these are of the type <U1"),
        ),
        (
            "what is not awaited",
            of_step(1, "add", "the model 'add' is given a wrong input 'x': it is still to be awaited"),
        ),
        ("several items", of_step(0, "add", "the model 'add' computes one item at a time: it has no batch dimension")),
        (
            "too large",
            of_step(
                0,
                "forms",
                "the model 'forms' is given a wrong input 'pixels': it is UINT8, and has values that do not fit",
            ),
        ),
        (
            "a number for a text",
            of_step(0, "forms", "the model 'forms' is given a wrong input 'text': it is str, and this a int"),
        ),
        (
            "a text for a list",
            of_step(0, "forms", "the model 'forms' is given a wrong input 'flags': it is list[bool], and this a str"),
        ),
        (
            "no JSON",
            of_step(
                0,
                "forms",
                "the model 'forms' is given a wrong input 'object': the result cannot be written as JSON: a value of "
                "type object",
            ),
        ),
        (
            "an object for bytes",
            of_step(
                0,
                "forms",
                "the model 'forms' is given a wrong input 'strings': it is BYTES, and a dict is neither text nor bytes",
            ),
        ),
        (
            "another length",
            of_step(0, "narrow", "unexpected shape for input 'x' for model 'narrow'. Expected [2], got [3]."),
        ),
        (
            "items of several lengths",
            of_step(0, "batched", "input 'name' batch size does not match other inputs for 'batched'"),
        ),
        (
            "no list of items",
            of_step(
                0, "batched", "the model 'batched' is given a wrong input 'name': it is a str, and no list of values"
            ),
        ),
        ("a model that is not there", of_step(0, "nothing", "there is no such model on this server")),
        ("a version that is not there", of_step(0, "add", "there is no such model on this server in version 7")),
        ("an unknown output", of_step(0, "add", "unexpected inference output 'z' for model 'add'")),
        (
            "itself",
            of_step(0, "acts", "ensembles ask for each other in a circle, which would never end: 'acts' -> 'acts'"),
        ),
        (
            "itself by another",
            of_step(
                0,
                "pieces",
                "in ensemble 'pieces', step 0 of model 'acts': ensembles ask for each other in a circle, which would "
                "never end: 'acts' -> 'pieces' -> 'acts'",
            ),
        ),
        ("a model that gives nothing", of_step(0, "none", "the model gave no result")),
        ("a text that is none", of_step(0, "mojibake", "a text is not UTF-8: invalid start byte at byte 0")),
        ("a_stream", of_step(0, "many", "the model streams: a request has any number of results; use 'async for'")),
        ("cancelled", of_step(0, "slow", "it was cancelled")),
        ("in_a_thread", "acts failed: OctavoError: the model 'add' can be asked in the ensemble's event loop only"),
    ],
)
def test_an_error_names_its_step(site: Site, do: str, words: str) -> None:
    """Its model, and the tensor that is to blame."""
    assert str(site.run(site.refusal(do))) == words
    assert site.ensembles["acts"].pending == 0


def test_whose_fault_an_error_is(site: Site) -> None:
    codes = {
        "another type": Code.INTERNAL,
        "another length": Code.INVALID_ARGUMENT,
        "a model that is not there": Code.UNAVAILABLE,
        "itself": Code.INTERNAL,
    }
    assert {do: site.run(site.refusal(do)).code for do in codes} == codes


@pytest.mark.parametrize("do", ["begun_at_once", "in_a_group"])
def test_a_failed_step_ends_the_others(site: Site, do: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, add = site.fakes["slow"], site.fakes["add"]

    def fall_over(inputs: Any) -> Any:
        raise InferenceError("it fell over", Code.INTERNAL)

    monkeypatch.setattr(add, "_compute", fall_over)

    async def scenario() -> None:
        slow.hold, hold = asyncio.Event(), asyncio.Event()
        add.hold = hold
        failing = asyncio.create_task(site.refusal(do))
        await eventually(lambda: slow.waiting == add.waiting == 1)
        hold.set()
        assert str(await failing) == of_step(1, "add", "it fell over")
        await eventually(lambda: slow.cancelled == 1)
        assert slow.pending == 0

    site.run(scenario())


def test_an_ensemble_may_go_another_way(site: Site) -> None:
    site.fakes["slow"].error = InferenceError("it fell over", Code.UNAVAILABLE, retry_after=3.5)
    assert site.run(site.act("falls_back")) == [of_step(0, "slow", "it fell over"), "unavailable", 3.5]


@pytest.mark.parametrize("do", ["gathered", "in_a_group", "begun_at_once", "one", "ignores_its_end"])
def test_a_client_that_leaves_ends_every_step(site: Site, do: str) -> None:
    async def scenario() -> None:
        for name in ("slow", "add"):
            site.fakes[name].hold = asyncio.Event()
        running = {"gathered": 2, "in_a_group": 2, "begun_at_once": 2}.get(do, 1)

        def sum_of(what: str) -> int:
            return sum(getattr(site.fakes[name], what) for name in ("slow", "add"))

        task = asyncio.create_task(site.act(do))
        await eventually(lambda: sum_of("waiting") == running)
        task.cancel()
        await asyncio.wait([task])
        await eventually(lambda: sum_of("cancelled") == running)
        assert sum_of("pending") == 0
        assert site.ensembles["acts"].pending == 0

    site.run(scenario())
    if do == "ignores_its_end":
        said = Path(os.environ["ENSEMBLE_FOLDER"]) / "ignored"

        async def told() -> None:
            await eventually(said.exists)
            await eventually(lambda: bool(said.read_text()))

        site.run(told())
        assert said.read_text() == of_step(1, "add", "the request that it belongs to has ended")


@pytest.mark.parametrize("do", ["never_awaited", "outlives_its_request", "within_a_time"])
def test_what_nobody_waits_for_ends_with_its_request(site: Site, do: str) -> None:
    async def scenario() -> None:
        slow, add = site.fakes["slow"], site.fakes["add"]
        slow.hold, hold = asyncio.Event(), asyncio.Event()
        add.hold = hold
        task = asyncio.create_task(site.act(do))
        await eventually(lambda: slow.waiting == 1)
        hold.set()
        assert await task == ("too late" if do == "within_a_time" else [2.0])
        await eventually(lambda: slow.cancelled == 1)
        assert slow.pending == 0
        if do == "outlives_its_request":
            await eventually((Path(os.environ["ENSEMBLE_FOLDER"]) / "outlived").exists)

    site.run(scenario())


def test_a_process_that_dies_wants_nothing_any_more(site: Site) -> None:
    async def scenario() -> None:
        slow, add = site.fakes["slow"], site.fakes["add"]
        slow.hold, hold = asyncio.Event(), asyncio.Event()
        add.hold = hold
        dying = asyncio.create_task(site.refusal("dies"))
        await eventually(lambda: slow.waiting == 1)
        hold.set()
        assert "the model failed" in str(await dying)
        await eventually(lambda: slow.cancelled == 1)
        assert await site.act("one") == [2.0]

    site.run(scenario())


def test_requests_wait_for_their_turn(site: Site) -> None:
    async def scenario() -> None:
        slow = site.fakes["slow"]
        hold = slow.hold = asyncio.Event()

        async def one(value: float) -> Any:
            return [each async for each in site.pieces("slow", value)]

        tasks = [asyncio.create_task(one(value)) for value in range(5)]
        await eventually(lambda: slow.waiting == 2)
        for _ in range(3):  # which are answered behind whatever the others begin
            with pytest.raises(InferenceError, match="'do'"):
                await anext(site.ensembles["pieces"].stream_call(BodyCall(media_type="", body=b"{}")))
        assert slow.waiting == 2
        hold.set()
        assert await asyncio.gather(*tasks) == [[[10.0 * value]] for value in range(5)]

    site.run(scenario())


# --- models that change -----------------------------------------------------------------------------------------------


def test_a_reload_of_a_model_loses_no_request(site: Site) -> None:
    """A step ends on what it began with; what comes then is asked as it wants to be, whatever it was before."""

    async def scenario() -> None:
        [old] = [each for each in site.steps if each.name == "add"]
        others = [each for each in (*site.steps, *site.made) if each is not old]
        doubles = specs("x", datatype=Datatype.FP64), specs("y", datatype=Datatype.FP64)
        new = model("add", lambda x: {"y": x + 1000}, *doubles)
        texts = model("add", lambda x: {"y": x}, specs("x", datatype=Datatype.BYTES))
        hold = fake(old).hold = asyncio.Event()
        task = asyncio.create_task(site.act("chain"))
        await eventually(lambda: fake(old).waiting == 1)
        site.deployments.offer([*others, new])
        gone = asyncio.create_task(site.deployments.unused(old))
        try:
            assert await site.act("chain") == [2001.0]
            assert not gone.done()
            hold.set()
            assert await task == [1002.0]  # its first step by the old one
            await gone
            site.deployments.offer([*others, texts])
            assert "neither text nor bytes" in str(await site.refusal("chain"))
        finally:
            site.deployments.offer([*site.steps, *site.made])
        assert await site.act("chain") == [3.0]

    site.run(scenario())


def test_it_is_ready_when_what_it_names_is(site: Site) -> None:
    async def scenario() -> None:
        client = site.ensembles["acts"]
        assert client.info is not None
        assert client.info.asks == (("add", -1), ("slow", -1))
        assert await client.confirms()
        site.fakes["slow"].state = WorkerState.RESTARTING
        assert not await client.confirms()
        site.fakes["slow"].state = WorkerState.READY
        site.deployments.offer([each for each in (*site.steps, *site.made) if each.name != "add"])
        try:
            assert not await client.confirms()
            assert str(await site.refusal("one")) == of_step(0, "add", "there is no such model on this server")
        finally:
            site.deployments.offer([*site.steps, *site.made])

    site.run(scenario())
