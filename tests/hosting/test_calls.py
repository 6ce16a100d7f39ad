"""What a model's process asks of others, as frontends do it for it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from octavo.deployments import Deployments
from octavo.deployments.step_models import OfferedModels
from octavo.hosting.calls import Calls
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Answered, Ask, Described, Details, Forget, Refused, Request, parts_of
from tests.hosting.ensembles import model
from tests.hosting.served import encoded, eventually
from tests.server.inference.fake import fake


class Process:
    """A process whose model asks others. Attributes: told: what it was told."""

    name = "asker"

    def __init__(self) -> None:
        self.told: list[Request] = []

    def tell(self, message: Request, tensors: Sequence[Buffer] = ()) -> None:
        self.told.append(message)


def asking(name: str, interface: int | None) -> tuple[Ask, memoryview]:
    x = encoded(np.array([1], "f4"))
    parts = parts_of({"x": x})
    return Ask(1, name, -1, parts, (), 0.0, Details(), many=True, waits=False, interface=interface), memoryview(x.data)


@pytest.mark.parametrize("results", [None, 3])
def test_what_is_wanted_no_more_holds_no_model(results: int | None) -> None:
    """Whenever that is said: at once, while it is computed, or when it was."""

    async def scenario() -> None:
        asked = model("asked", lambda x: {"y": x}, results=results)
        deployments = Deployments([asked])
        calls, process = Calls(OfferedModels(deployments)), Process()
        info = asked.client.info
        assert info is not None
        ask, data = asking("asked", info.interface.number)
        calls.on_message(process, ask, data)
        calls.on_message(process, Forget(1), memoryview(b""))
        await eventually(lambda: not deployments.uses)
        assert [type(each) for each in process.told] == [Refused]
        fake(asked).hold = asyncio.Event()
        for end in (lambda: calls.on_message(process, Forget(1), memoryview(b"")), lambda: calls.leave(process)):
            calls.on_message(process, ask, data)
            await eventually(lambda: fake(asked).waiting == 1)
            assert deployments.uses
            end()
            await eventually(lambda: not deployments.uses and not fake(asked).pending)
        fake(asked).hold = None
        process.told.clear()
        calls.on_message(process, ask, data)
        await eventually(lambda: not deployments.uses)
        assert {type(each) for each in process.told} == {Answered}
        calls.on_message(process, Forget(1), memoryview(b""))
        assert {type(each) for each in process.told} == {Answered}

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_process_is_told_how_a_model_is_asked() -> None:
    """Unless it knows; one that does not want to know is not told."""

    async def scenario() -> None:
        asked = model("asked", lambda x: {"y": x})
        deployments = Deployments([asked])
        calls, process = Calls(OfferedModels(deployments)), Process()
        for interface in (0, 1):
            calls.on_message(process, *asking("asked", interface))
        told: list[Any] = process.told
        assert [type(each) for each in told] == [Described, Described]
        assert [each.name for each in told[0].interface.inputs] == ["x"]
        assert not deployments.uses
        for interface in (told[0].interface.number, None):
            process.told.clear()
            calls.on_message(process, *asking("asked", interface))
            await eventually(lambda: bool(process.told))
            assert [type(each) for each in process.told] == [Answered]

    asyncio.run(asyncio.wait_for(scenario(), 20))
