"""What is waited for, and what it holds."""

import asyncio
import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.intake import failed
from octavo.hosting.pending import Pending
from octavo.hosting.wire import Infer


async def only(pending: Pending) -> None:
    pending.only()


async def each(pending: Pending) -> None:
    await pending.next()


@pytest.mark.parametrize("read", [only, each])
def test_a_request_that_has_failed_holds_its_tensors_no_longer_than_it_is_looked_at(
    read: Callable[[Pending], asyncio.Future[None]],
) -> None:
    """Memory that is shared with another process is lent for as long as a tensor is there."""

    async def test() -> weakref.ref[np.ndarray]:  # type: ignore[type-arg]
        tensor = np.zeros(3)
        pending = Pending(asyncio.get_running_loop(), Infer(1, (), 0.0), [tensor.data], 1, 0)
        pending.settle(error=InferenceError("no", Code.UNAVAILABLE, retry_after=2.0))
        pending.end()
        for _ in range(2):
            with pytest.raises(InferenceError, match=r"^no$") as caught:
                await read(pending)
            assert (caught.value.code, caught.value.retry_after) == (Code.UNAVAILABLE, 2.0)
            del caught
        return weakref.ref(tensor)

    gc.disable()
    try:
        assert asyncio.run(test())() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kept", ["told", "settled"])
def test_an_error_holds_nothing_of_where_it_was_raised(kept: str) -> None:
    def compute(loop: asyncio.AbstractEventLoop) -> weakref.ref[np.ndarray]:  # type: ignore[type-arg]
        tensor = np.zeros(3)
        try:
            raise InferenceError("no") from ValueError("for a reason")
        except InferenceError as error:
            answers = [error]  # in a frame that the error went through
        if kept == "told":
            assert failed(1, answers[0]).message == "no"
        else:
            pending = Pending(loop, Infer(1, (), 0.0), [], 1, 0)
            pending.settle(error=answers[0])
        return weakref.ref(tensor)

    loop = asyncio.new_event_loop()
    gc.disable()
    try:
        assert compute(loop)() is None
    finally:
        gc.enable()
        loop.close()
