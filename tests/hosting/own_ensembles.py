"""Ensembles of somebody's own, for tests."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import octavo

add, slow, many = octavo.Model("add"), octavo.Model("slow"), octavo.Model("many")


@octavo.ensemble
async def acts(do: str, value: float = 1.0, *, add: octavo.Model, slow: octavo.Model) -> Any:
    """Does what it is told."""
    return plain(await ACTS[do](value))


@octavo.ensemble(max_inflight_requests=2)
async def pieces(do: str, value: float = 1.0, *, add: octavo.Model) -> AsyncIterator[Any]:
    """The same, piece by piece."""
    if do == "each":
        async for piece in many(x=[value]):
            yield plain(piece)
    elif do == "mapped":
        async for piece in many(x=[value]):
            yield plain(await add(x=piece["y"]))
    elif do == "first":
        async for piece in many(x=[value]):
            yield plain(piece)
            break
        yield "over"
        await slow(x=[value])
    elif do == "circle":
        yield await octavo.Model("acts")(do="one")
    else:
        yield plain(await slow(x=[value]))


def plain(value: Any) -> Any:
    """Without arrays, and without names where there is one output."""
    if isinstance(value, dict):
        value = {name: plain(each) for name, each in value.items()}
        return next(iter(value.values())) if len(value) == 1 else value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


async def one(value: float) -> Any:
    return await add(x=[value])


async def chain(value: float) -> Any:
    first = await add(x=[value])
    return await add(x=first["y"])


async def begun_at_once(value: float) -> Any:
    steps = [slow(x=[value]), add(x=[value])]
    return [(await each)["y"] for each in reversed(steps)]


async def gathered(value: float) -> Any:
    return await asyncio.gather(slow(x=[value]), slow(x=[value + 1]))


async def in_a_group(value: float) -> Any:
    async with asyncio.TaskGroup() as group:
        group.create_task(waiting(slow(x=[value])))
        group.create_task(waiting(add(x=[value] * 100)))


async def waiting(step: Any) -> Any:
    return await step


async def until_small(value: float) -> Any:
    """A condition, and a loop."""
    rounds = 0
    while value < 5:
        value = (await add(x=[value]))["y"][0]
        rounds += 1
    return rounds, value


async def twice(value: float) -> Any:
    step = add(x=[value])
    return [await step, await step, *await asyncio.gather(step, step)]


async def never_awaited(value: float) -> Any:
    slow(x=[value])
    return (await add(x=[value]))["y"]


async def cancelled(value: float) -> Any:
    step = slow(x=[value])
    step.cancel()
    return await step


async def within_a_time(value: float) -> Any:
    step = slow(x=[value])
    await add(x=[value])
    try:
        async with asyncio.timeout(0):
            await step
    except TimeoutError:
        return "too late"


async def falls_back(value: float) -> Any:
    try:
        return await slow(x=[value])
    except octavo.InferenceError as error:
        return [str(error), error.code.value, error.retry_after]


async def ignores_its_end(value: float) -> Any:
    try:
        await slow(x=[value])
    except asyncio.CancelledError:
        try:
            add(x=[value])
        except octavo.InferenceError as error:
            (Path(os.environ["ENSEMBLE_FOLDER"]) / "ignored").write_text(str(error))


async def outlives_its_request(value: float) -> Any:
    async def later() -> None:
        try:
            await slow(x=[value])
        finally:
            (Path(os.environ["ENSEMBLE_FOLDER"]) / "outlived").write_text("ended")

    global task
    task = asyncio.create_task(later())
    return await add(x=[value])


async def in_a_thread(value: float) -> Any:
    return await asyncio.to_thread(add, x=[value])


async def dies(value: float) -> Any:
    slow(x=[value])
    await add(x=[value])
    os._exit(1)


async def a_stream(value: float) -> Any:
    return await many(x=[value])


async def of_several(value: float) -> Any:
    return await octavo.Model("batched").batch(x=[[value], [value + 1]], name=["a", "b"])


async def forms(value: float) -> Any:
    given: dict[str, Any] = {
        "text": "é",
        "number": int(value),
        "flags": [True, False],
        "object": {"a": [1, None], "b": "c"},
        "file": b"\xff",
        "pixels": [[1, 2], [3, 4]],
        "strings": [["a", "b"]],
    }
    answer = await octavo.Model("forms")(**given)
    answer["strings"] = answer["strings"].tolist() == [[b"a", b"b"]]
    assert answer["pixels"].flags.writeable
    return answer


async def some_outputs(value: float) -> Any:
    return await octavo.Model("forms", outputs=["text"])(text="a", left_out=None)


WRONG: dict[str, Any] = {
    "an unknown input": lambda: add(z=[1]),
    "a missing input": lambda: add(),
    "another type": lambda: add(x=["a"]),
    "what is not awaited": lambda: add(x=add(x=[1])),
    "several items": lambda: add.batch(x=[[1]]),
    "too large": lambda: octavo.Model("forms")(pixels=[300]),
    "a number for a text": lambda: octavo.Model("forms")(text=1),
    "a text for a list": lambda: octavo.Model("forms")(flags="ab"),
    "no JSON": lambda: octavo.Model("forms")(object=object()),
    "an object for bytes": lambda: octavo.Model("forms")(strings={"a": 1}),
    "another length": lambda: octavo.Model("narrow")(x=[1, 2, 3]),
    "items of several lengths": lambda: octavo.Model("batched").batch(x=[[1], [2]], name=["a"]),
    "no list of items": lambda: octavo.Model("batched").batch(x=[[1], [2]], name="ab"),
    "a model that is not there": lambda: octavo.Model("nothing")(x=[1]),
    "a version that is not there": lambda: octavo.Model("add", version=7)(x=[1]),
    "an unknown output": lambda: octavo.Model("add", outputs=["z"])(x=[1]),
    "itself": lambda: octavo.Model("acts")(do="one"),
    "itself by another": lambda: octavo.Model("pieces")(do="circle"),
    "a model that gives nothing": lambda: octavo.Model("none")(x=[1]),
    "a text that is none": lambda: octavo.Model("mojibake")(x=[1]),
}


def wrong(what: str) -> Any:
    async def ask(value: float) -> Any:
        return await WRONG[what]()

    return ask


ACTS: dict[str, Any] = {
    **{
        each.__name__: each
        for each in (
            *(one, chain, begun_at_once, gathered, in_a_group, until_small, twice, never_awaited, cancelled, a_stream),
            *(within_a_time, falls_back, ignores_its_end, outlives_its_request, in_a_thread, dies, of_several, forms),
            some_outputs,
        )
    },
    **{what: wrong(what) for what in WRONG},
}


@octavo.ensemble
async def judged(prompt: str, llm: str, *, classify: octavo.Model) -> Any:
    """What a model says of what another one says."""
    said = await octavo.Model(llm)(text_input=prompt, sampling_parameters={"max_tokens": 4})
    return await classify(text=said["text_output"])
