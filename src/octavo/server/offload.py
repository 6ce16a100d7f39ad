"""Work that would hold up the event loop, and with it every stream, is done in a few threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

THREADS = 4
"""Few: each that computes in Python makes the event loop wait longer for its turn."""

P = ParamSpec("P")
R = TypeVar("R")

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="octavo-text")


async def off_loop(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in one of the threads."""
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(function, *args, **kwargs))
