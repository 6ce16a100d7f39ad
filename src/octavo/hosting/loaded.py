"""A hosted model in the process that serves it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from octavo.hosting.computation import Computation
from octavo.hosting.endpoint import Endpoint
from octavo.hosting.info import HostedInfo
from octavo.hosting.permits import Permits
from octavo.hosting.rate_limits import Limits
from octavo.hosting.running import Running
from octavo.hosting.server import ModelServer
from octavo.hosting.start import HostingStart


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model in this process.

    Attributes:
        at_once: batches that it computes at the same time, in as many threads.
        load: what remains to be done in the event loop that it is called in, if its code is asynchronous.
        serve: what has it computed, if that is done in a way of its own.
        limits: what each of its instances needs to compute, where a rate limiter gives that out. all_limits: and each
            of its model's, in whichever process.
        finalize: what its code does before its process ends.
        resize: what it is with other instances, if it can go on with these.
    """

    computation: Computation
    info: HostedInfo
    at_once: int
    load: Callable[[], Awaitable[None]] | None = None
    serve: Callable[[Endpoint, Running, Permits | None], ModelServer] | None = None
    limits: tuple[Limits, ...] = ()
    all_limits: tuple[Limits, ...] = ()
    finalize: Callable[[], None] | None = None
    resize: Callable[[HostingStart], tuple[HostedInfo, int]] | None = None
