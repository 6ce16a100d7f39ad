"""Requests enter in the order of arrival, never more than fit, and nothing that was taken is lost."""

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from octavo.llm.window import Window

SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 30)), max_size=30)


@given(SIZES, st.integers(0, 2**32), st.floats(0, 0.5))
def test_turns(sizes: list[tuple[int, int]], seed: int, cancelled: float) -> None:
    draw = random.Random(seed)

    async def program() -> None:
        window = Window(4, 20)
        inside = {"choices": 0, "tokens": 0}
        entered: list[int] = []

        async def request(position: int, choices: int, tokens: int) -> None:
            room = await window.enter(choices, tokens)
            entered.append(position)
            try:
                inside["choices"] += room.choices
                inside["tokens"] += room.tokens
                assert inside["choices"] <= 4
                assert inside["tokens"] <= 20
                for _ in range(draw.randrange(3)):
                    await asyncio.sleep(0)
            finally:
                inside["choices"] -= room.choices
                inside["tokens"] -= room.tokens
                window.leave(room)

        tasks = [asyncio.create_task(request(position, *size)) for position, size in enumerate(sizes)]
        victims = [task for task in tasks if draw.random() < cancelled]
        for victim in victims:
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            victim.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
            assert entered == sorted(entered)
            whole = await window.enter(4, 20)  # everything has been given back
        window.leave(whole)

    asyncio.run(program())
