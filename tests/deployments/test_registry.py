"""What a server offers can change while requests go on."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from octavo.deployments import Deployment, Deployments


def deployment(name: str, *aliases: str) -> Deployment:
    nothing = cast(Any, SimpleNamespace())
    return Deployment(
        name=name, aliases=aliases, tokenizer=nothing, engine=nothing, max_model_len=1, created=0, root=name
    )


def test_names_and_order() -> None:
    first, second = deployment("a", "x"), deployment("b")
    deployments = Deployments([first, second])
    assert [*deployments] == [first, second]
    assert deployments.get("x") is first
    assert deployments.get("b") is second
    assert deployments.get("c") is None
    newer = deployment("a")
    deployments.offer([newer, second])
    assert deployments.get("a") is newer
    assert deployments.get("x") is None


async def settled(task: "asyncio.Task[None]") -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


def test_a_deployment_is_in_use_until_its_last_request_has_ended() -> None:
    async def scenario() -> None:
        old, other, new = deployment("a"), deployment("b"), deployment("a")
        deployments = Deployments([old, other])
        running, elsewhere, undecided, gone = (deployments.begin() for _ in range(4))
        running.choose(old)
        elsewhere.choose(other)
        deployments.offer([new, other])
        waiting = asyncio.create_task(deployments.unused(old))
        assert not await settled(waiting)
        later = deployments.begin()  # cannot come to the old one any more
        gone.end()
        undecided.choose(old)
        running.end()
        assert not await settled(waiting)
        undecided.end()
        assert await settled(waiting)
        assert deployments.uses == {elsewhere, later}

    asyncio.run(scenario())


def test_a_request_that_turns_out_to_be_for_another_does_not_count() -> None:
    async def scenario() -> None:
        old, new = deployment("a"), deployment("a")
        deployments = Deployments([old])
        undecided = deployments.begin()
        deployments.offer([new])
        waiting = asyncio.create_task(deployments.unused(old))
        assert not await settled(waiting)
        undecided.choose(new)
        assert await settled(waiting)

    asyncio.run(scenario())
