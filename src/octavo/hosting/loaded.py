"""A hosted model in the process that serves it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from octavo.hosting.computation import Computation
from octavo.hosting.info import HostedInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model in this process.

    Attributes:
        at_once: batches that it computes at the same time, in as many threads.
        load: what remains to be done in the event loop that it is called in, if its code is asynchronous.
    """

    computation: Computation
    info: HostedInfo
    at_once: int
    load: Callable[[], Awaitable[None]] | None = None
