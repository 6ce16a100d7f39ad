"""Models in somebody's own Python: what they take, and what becomes of each request."""

import asyncio
import functools
import math
import os
import py_compile
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.errors import ConfigError, InvalidRequest, OctavoError
from octavo.hosting.decorators import ensemble, model
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.own import OwnModel
from octavo.hosting.own_code import find_code
from octavo.hosting.steps import Model


def loaded(target: Any) -> OwnModel:
    own = OwnModel(target)
    own.load()
    return own


@model(max_batch_size=4, name="doubling")
class Doubling:
    calls = 0

    def load(self) -> None:
        self.factor = 2

    def predict(self, number: list[int], plus: list[int] = 0) -> list[int]:  # type: ignore[assignment]
        Doubling.calls += 1
        return [self.factor * each + more for each, more in zip(number, plus, strict=True)]


def shout(text: str, times: int = 1) -> str:
    return text.upper() * times


def test_a_class_with_a_batch() -> None:
    own = loaded(Doubling)
    assert (own.name, own.options.max_batch_size) == ("doubling", 4)
    assert [(each.name, each.type, each.required) for each in own.parameters.values()] == [
        ("number", int, True),
        ("plus", int, False),
    ]
    assert own.result is int
    Doubling.calls = 0
    assert own.compute([{"number": 1}, {"number": 2, "plus": 5}]) == [2, 9]
    assert Doubling.calls == 1


def test_a_plain_function() -> None:
    own = loaded(shout)
    assert (own.name, own.result, own.streams, own.asynchronous) == ("shout", str, False, False)
    assert own.compute([{"text": "a"}, {"text": "b", "times": 2}]) == ["A", "BB"]


def test_arrays_are_stacked_and_taken_apart() -> None:
    @model(max_batch_size=8)
    def norm(x: NDArray[np.float32], y: Annotated[np.ndarray, "marked"]) -> np.ndarray:
        assert x.shape[1:] == (3,)
        return x.sum(1) + y[:, 0]

    own = loaded(norm)
    assert all(each.stacked for each in own.parameters.values())
    requests = [{"x": np.full(3, n, np.float32), "y": np.array([0.5])} for n in range(3)]
    assert list(own.compute(requests)) == [0.5, 3.5, 6.5]


def test_who_is_to_blame_fails_alone() -> None:
    seen = []

    @model(max_batch_size=8)
    def inverse(number: list[int]) -> list[float]:
        seen.append(len(number))
        return [1 / each for each in number]

    found = loaded(inverse).compute([{"number": n} for n in (1, 0, 4)])
    assert found[::2] == [1.0, 0.25]
    assert isinstance(found[1], InferenceError)
    assert (str(found[1]), found[1].code) == ("inverse failed: ZeroDivisionError: division by zero", Code.INTERNAL)
    assert seen == [3, 1, 1, 1]


def test_an_exception_in_the_place_of_a_result() -> None:
    @model(max_batch_size=8)
    def checked(number: list[int]) -> list[int]:
        return [each if each > 0 else InvalidRequest(f"{each} is not positive") for each in number]  # type: ignore[misc]

    found = loaded(checked).compute([{"number": 1}, {"number": -1}])
    assert found[0] == 1
    assert (str(found[1]), found[1].code) == ("-1 is not positive", Code.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1], "ValueError: predict returned 1 rows for 2 requests"),
        (np.zeros((3, 2)), "ValueError: predict returned 3 rows for 2 requests"),
        (np.float32(1), "TypeError: predict returned a float32, no list over 2 requests"),
        (np.array(1), "TypeError: predict returned an array without dimensions"),
        ("ab", "TypeError: predict returned a str, no list over 2 requests"),
        (None, "TypeError: predict returned a NoneType"),
    ],
)
def test_a_result_that_is_not_one_row_for_each_request(
    result: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    @model(max_batch_size=2)
    def wrong(number: list[int]) -> list[int]:
        return result if len(number) == 2 else number

    assert loaded(wrong).compute([{"number": 1}, {"number": 2}]) == [1, 2], "alone they have one"
    kind, _, text = message.partition(": ")
    assert f"wrong failed on 2 requests, {kind}('{text}" in caplog.text


def test_too_many_rows_for_one_request() -> None:
    @model(max_batch_size=2)
    def twice(number: list[int]) -> list[int]:
        return number * 2

    [failed] = loaded(twice).compute([{"number": 1}])
    assert str(failed) == "twice failed: ValueError: predict returned 2 rows for 1 requests"


@pytest.mark.parametrize("batch", [0, 4])
def test_a_model_that_ends_itself_does_not_end_the_server(batch: int) -> None:
    @model(max_batch_size=batch)
    def leaves(number: Any) -> Any:
        raise SystemExit(3)

    [failed] = loaded(leaves).compute([{"number": 1}])
    assert str(failed) == "leaves failed: it called sys.exit(3)"


def test_generators_stream() -> None:
    def count(to: int) -> Iterator[int]:
        yield from range(to)
        if to > 3:
            raise InvalidRequest("too far")

    own = loaded(count)
    assert own.streams
    assert own.result is int
    assert list(own.stream({"to": 3})) == [0, 1, 2]
    pieces = own.stream({"to": 4})
    assert [next(pieces) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(InferenceError, match="too far") as caught:
        next(pieces)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_code_behind_decorators_and_an_asynchronous_load() -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            return function(*arguments, **named)

        return wrapper

    @logged
    async def later(number: int) -> int:
        return number + 1

    @logged
    def pieces(text: str) -> Iterator[str]:
        yield from text

    class Warm(dict):  # type: ignore[type-arg]
        async def load(self) -> None:
            await asyncio.sleep(0)
            self["ready"] = True

        def predict(self, number: int) -> bool:
            return bool(self["ready"])

    assert loaded(later).asynchronous
    assert asyncio.run(loaded(later).acompute([{"number": 1}])) == [2]
    assert list(loaded(pieces).stream({"text": "ab"})) == ["a", "b"]
    assert loaded(Warm).compute([{"number": 1}]) == [True]
    warm = OwnModel(Warm)
    asyncio.run(warm.aload())
    assert warm.compute([{"number": 1}]) == [True]


def test_asynchronous_code() -> None:
    @model(max_batch_size=4)
    async def slow(number: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [each + 1 for each in number]

    async def pieces(text: str) -> AsyncIterator[str]:
        for each in text:
            await asyncio.sleep(0)
            yield each

    own, streaming = loaded(slow), loaded(pieces)
    assert own.asynchronous
    assert streaming.streams
    assert streaming.result is str

    async def run() -> tuple[list[int], list[str]]:
        return await own.acompute([{"number": 1}, {"number": 2}]), [
            each async for each in streaming.astream({"text": "ab"})
        ]

    assert asyncio.run(run()) == ([2, 3], ["a", "b"])


class Needy:
    def __init__(self, path: str) -> None: ...
    def predict(self, text: str) -> str: ...


class Silent:
    def load(self) -> None: ...


class Classy:
    @classmethod
    def predict(cls, text: str) -> str: ...


def mapped(text: list[str]) -> Iterable[str]: ...
def positional(text: str, /) -> str: ...
def anything(**fields: str) -> str: ...
def nothing() -> str: ...
def unknown(text: "Nowhere") -> str: ...  # type: ignore[name-defined]  # noqa: F821
def one(text: str) -> list[str]: ...
def single(text: list[str]) -> str: ...
def generator(text: list[str]) -> Iterator[str]:
    yield ""


@pytest.mark.parametrize(
    ("target", "batch", "message"),
    [
        (Needy, 0, "Needy is made without arguments, and needs path: give defaults"),
        (Silent, 0, "the class Silent has no method `predict`, which is what answers requests"),
        (Classy, 0, "the class Classy has no method `predict`"),
        ("x".upper, 0, "is a builtin_function_or_method, no function"),
        (Doubling().load, 0, "Doubling.load is a method, no function"),
        (mapped, 2, "with max_batch_size the result of mapped is a list over requests"),
        (3, 0, "3 is an int, no function and no class with `predict`"),
        (positional, 0, "positional has a parameter text: str: requests have names, each for one value"),
        (anything, 0, "anything has a parameter **fields: str"),
        (nothing, 0, "nothing takes nothing"),
        (unknown, 0, "the annotations of unknown cannot be read: name 'Nowhere' is not defined"),
        (one, 2, "with max_batch_size the parameter 'text' of one is a list over requests: annotate it list[str]"),
        (single, 2, "with max_batch_size the result of single is a list over requests"),
        (generator, 2, "generator is a generator, which answers one request: leave max_batch_size out"),
    ],
)
def test_what_is_no_model(target: Any, batch: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model(max_batch_size=batch)(target)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"max_batch_size": -1}, {"instances": 0}, {"max_queue_delay": math.inf}, {"max_queue_delay": -1.0}]
)
def test_options_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        model(**options)  # type: ignore[call-overload]


def test_a_decorated_function_is_still_a_function() -> None:
    @model
    def echo(text: str) -> str:
        return text

    assert echo("a") == "a"
    assert loaded(echo).name == "echo"


# --- ensembles --------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_a_function_of_models_for_whoever_tests_it() -> None:
    third = Model("o/ther", version=3)

    @ensemble
    async def whole(text: str, times: int = 2, *, shout: Model, other: Model = third) -> str:
        return await shout(text=text, times=times) + await other(text=text)  # type: ignore[no-any-return]

    own = OwnModel(whole)
    assert [(each.name, each.required) for each in own.parameters.values()] == [("text", True), ("times", False)]
    assert {name: (each.name, each.version) for name, each in own.models.items()} == {
        "shout": ("shout", -1),
        "other": ("o/ther", 3),
    }

    async def fake(text: str, times: int = 1) -> str:
        return text.upper() * times

    assert asyncio.run(whole("a", shout=fake, other=fake)) == "AAA"  # type: ignore[arg-type]


def test_a_model_is_asked_while_a_request_is_computed() -> None:
    with pytest.raises(OctavoError, match="'shout' can be asked only while an @octavo"):
        Model("shout")(text="a")


def plain_ensemble(text: str) -> str: ...
async def with_a_default(text: str, *, shout: Model = "shout") -> str: ...  # type: ignore[assignment]
async def perhaps(text: str, *, shout: Model | None = None) -> str: ...
async def of_models_alone(shout: Model) -> str: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ensemble(plain_ensemble),
            "plain_ensemble is an ensemble, which waits for its models: write `async def`",
        ),
        (
            lambda: ensemble(with_a_default),
            "the parameter 'shout' of with_a_default is a model: give it no default, or",
        ),
        (lambda: ensemble(perhaps), "the parameter 'shout' of perhaps is a model: give it no default, or octavo.Model"),
        (lambda: ensemble(of_models_alone), "of_models_alone takes nothing"),
        (lambda: model(with_a_default), "has a model as its parameter 'shout': only @octavo.ensemble asks any"),
        (lambda: ensemble(max_inflight_requests=0), "max_inflight_requests is 0; give 1 to 65536"),
        (lambda: ensemble(max_batch_size=2), "max_batch_size"),  # type: ignore[call-overload]
        (lambda: Model(""), "octavo.Model is given the name of a model, not ''"),
        (lambda: Model(Needy), "not <class"),  # type: ignore[arg-type]
        (lambda: Model("m", version=0), "the version of the model 'm' is 0; give a number from 1 on, or none"),
        (lambda: Model("m", outputs="y"), "the outputs of the model 'm' are 'y'; give a list of their names"),
    ],
)
def test_what_is_no_ensemble(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_code_that_changed_twice_within_a_second_is_what_is_there_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "twice.py"
    for number in (1, 2):
        path.write_text(f"def twice(x):\n    return {number}\n")
        os.utime(path, (1e9, 1e9))
        if number == 1:
            compiled = Path(py_compile.compile(str(path)))
            os.utime(compiled, (1e9, 1e9))
    assert find_code(f"{path}:twice")(0) == 2
