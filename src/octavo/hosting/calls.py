"""Models that ask others: a frontend does it for them, and sends them what comes of it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from octavo.errors import OctavoError
from octavo.hosting.ensemble import LATEST, EnsembleStep
from octavo.hosting.ensemble_client import Models, StepModel, Use
from octavo.hosting.ensemble_links import KEPT, Known
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference, Outlined
from octavo.hosting.model_client import ModelClient
from octavo.hosting.pending import Pending, Result
from octavo.hosting.tensors import Buffer
from octavo.hosting.trace import find
from octavo.hosting.wire import (
    READY,
    UNLOAD,
    Answered,
    Ask,
    Described,
    Forget,
    Manage,
    Managed,
    Refused,
    Reply,
    Request,
    tensors_of,
)
from octavo.worker.control import WorkerState

log = logging.getLogger(__name__)

_ENDED = (WorkerState.FAILED, WorkerState.STOPPED)
"""What is not asked. One that is started again has what it is asked for wait."""

DECOUPLED = (
    "Model {} is using the decoupled. The current BLS request call doesn't support models using the decoupled "
    "transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for decoupled "
    "models.'"
)


class Asker(Protocol):
    """A process whose model asks others."""

    name: str

    def tell(self, message: Request, tensors: Sequence[Buffer] = ()) -> None:
        """Send it something, if it is there."""
        ...


class Repository(Protocol):
    """What loads and unloads models, for those that may want it."""

    async def load(self, name: str, parameters: Mapping[str, str | bytes]) -> None:
        """Load a model. Raises OctavoError: it cannot be.

        Args:
            parameters: "config", and "file:PATH" for each file, in the place of what the repository has.
        """
        ...

    async def unload(self, name: str, *, dependents: bool) -> None:
        """Unload a model. Raises OctavoError: it cannot be."""
        ...


class Calls:
    """What the processes of one model have asked for.

    Args:
        models: that can be asked. repository: None if models load none.
    """

    def __init__(self, models: Models, repository: Repository | None = None) -> None:
        self._models = models
        self._repository = repository
        self._running: dict[tuple[str, int], asyncio.Task[None] | _Request] = {}
        self._known: dict[tuple[str, int, tuple[str, ...]], Known] = {}

    def on_message(self, asker: Asker, message: Reply, data: memoryview) -> None:
        """A model wants something, or wants it no more."""
        match message:
            case Ask():
                self._infer(asker, message, data)
            case Manage():
                self._start((asker.name, message.call), self._manage(asker, message, data))
            case Forget():
                running = self._running.pop((asker.name, message.call), None)
                if running is not None:
                    running.cancel()
                    asker.tell(Refused(message.call, Code.CANCELLED.value, "Request cancelled"))

    def are_ready(self, asks: Iterable[tuple[str, int]]) -> bool:
        """Whether models would compute a request now, each by its name and version."""
        return all(self._is_ready(name, version) for name, version in asks)

    def leave(self, asker: Asker) -> None:
        """The process has ended."""
        for key in [each for each in self._running if each[0] == asker.name]:
            self._running.pop(key).cancel()

    def _start(self, key: tuple[str, int], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def end(task: asyncio.Task[None]) -> None:
            if self._running.get(key) is task:  # and not one of the process that took the other's place
                del self._running[key]

        task = self._running[key] = asyncio.create_task(work)
        task.add_done_callback(end)
        return task

    # --- other models -------------------------------------------------------------------------------------------------

    def _infer(self, asker: Asker, ask: Ask, data: memoryview) -> None:
        """Ask a model. A single result is passed on within the event that brings it, without a task."""
        try:
            found = self._find(ask)
            info = found.client.info
            if ask.interface is not None and info is not None and info.interface.number != ask.interface:
                asker.tell(Described(ask.call, info.interface))
                return
            streams = info is not None and info.streams
            if streams and not ask.many:
                raise _not_run(ask, DECOUPLED.format(ask.model))
            use, key = self._models.hold(found), (asker.name, ask.call)
            request = _Request(found.client, self._known_of(ask), use, asker, ask)
            if streams:
                following = self._start(key, request.follow(data))
                following.add_done_callback(lambda _: use.end())  # which may be cancelled before it begins
                return
            if not request.begin(data, lambda: self._running.pop(key, None)):
                self._running[key] = request
        except InferenceError as error:
            asker.tell(_refused(ask, error))
        except Exception:
            asker.tell(_refused(ask, _defect(asker, ask)))

    def _known_of(self, ask: Ask) -> Known:
        """What a model was asked for before."""
        key = ask.model, ask.version, ask.outputs
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            known = self._known[key] = Known()
        return known

    def _find(self, ask: Ask) -> StepModel:
        """The model. Raises InferenceError: there is none, or it can be asked for nothing."""
        inputs = {each.name: each.name for each in ask.parts}
        found = self._models.find(EnsembleStep(model=ask.model, inputs=inputs, outputs={}, version=ask.version))
        if found is None:
            if ask.interface is None:
                raise _not_run(ask, f"Request for unknown model: '{ask.model}' is not found", Code.NOT_FOUND)
            version = "" if ask.version == LATEST else f" in version {ask.version}"
            raise InferenceError(f"there is no such model on this server{version}", Code.UNAVAILABLE)
        if ask.interface is None and (found.client.info is None or found.client.state in _ENDED):
            raise _not_run(ask, f"Failed for execute the inference request. Model '{ask.model}' is not ready.")
        return found

    # --- the server ---------------------------------------------------------------------------------------------------

    async def _manage(self, asker: Asker, message: Manage, data: memoryview) -> None:
        error = ""
        try:
            if message.act != READY:
                await self._change(message, data)
        except OctavoError as refused:
            error = str(refused)
        except Exception:  # a defect of ours: the model is not to wait for ever
            log.exception("%s wants to %s %s", asker.name, message.act, message.model)
            error = "The server had an error while processing this request."
        version = int(message.version) if message.version.isdecimal() else LATEST
        asker.tell(Managed(message.call, self._is_ready(message.model, version), error))

    async def _change(self, message: Manage, data: memoryview) -> None:
        """Load or unload a model. Raises OctavoError."""
        if self._repository is None:
            raise InferenceError("explicit model load / unload is not allowed if polling is enabled", Code.UNAVAILABLE)
        if message.act == UNLOAD:
            await self._repository.unload(message.model, dependents=message.dependents)
            return
        parameters: dict[str, str | bytes] = {"config": message.config} if message.config else {}
        at = 0
        for name, size in message.files:
            parameters[name] = bytes(data[at : at + size])
            at += size
        await self._repository.load(message.model, parameters)

    def _is_ready(self, name: str, version: int) -> bool:
        found = self._models.find(EnsembleStep(model=name, inputs={}, outputs={}, version=version))
        return found is not None and found.client.state is WorkerState.READY


class _Request:
    """What a process wants of a model. Args: known: what it was asked for before. use: keeps the model."""

    def __init__(self, client: ModelClient, known: Known, use: Use, asker: Asker, ask: Ask) -> None:
        self._client = client
        self._known = known
        self._use = use
        self._asker = asker
        self._ask = ask
        self._pending: Pending | None = None

    def begin(self, data: memoryview, on_end: Callable[[], object]) -> bool:
        """Ask for one result. Returns whether it has ended already. Raises InferenceError: the model does not take it.

        Args:
            on_end: called when it has ended, or when that is known of one that was not.
        """

        def end(pending: Pending) -> None:
            on_end()
            self._use.end()
            try:
                self._asker.tell(*self._answer(pending.only(), last=True))
            except InferenceError as error:
                self._asker.tell(_refused(self._ask, error))
            except Exception:
                self._asker.tell(_refused(self._ask, _defect(self._asker, self._ask)))

        try:
            self._pending = self._begin(data, end)
        except BaseException:
            self._use.end()
            raise
        return self._pending.ended

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        assert self._pending is not None, "it has begun"
        self._client.leave(self._pending)
        self._use.end()

    async def follow(self, data: memoryview) -> None:
        """Ask for any number of results, and pass them on as they come."""
        try:
            await self._follow(self._begin(data))
        except InferenceError as error:
            self._asker.tell(_refused(self._ask, error))
        except Exception:
            self._asker.tell(_refused(self._ask, _defect(self._asker, self._ask)))

    async def _follow(self, pending: Pending) -> None:
        last = False
        try:
            while result := await pending.next():
                last = result[0].last
                self._asker.tell(*self._answer(result, last=last))
            if not last:
                self._asker.tell(Answered(self._ask.call, empty=True))
        finally:
            self._client.leave(pending)

    def _begin(self, data: memoryview, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """Ask the model. Raises InferenceError: it does not take the request."""
        ask = self._ask
        within = (*ask.details.within, self._asker.name) if ask.waits else ask.details.within
        parent = find(ask.details.trace)
        trace = None if parent is None else parent.child()
        if trace is not None:
            trace.request_id = ask.details.id
        details = replace(ask.details, within=within, trace=0)
        try:
            outline = self._known.find(ask.parts, self._client)
            if outline is None:
                inference = Inference(inputs=tensors_of(ask.parts, data), outputs=ask.outputs)
                outline = self._client.outline(inference).outline
                self._known.learn(ask.parts, outline)
            outlined = Outlined(outline, [data], ask.priority, ask.timeout, details, trace)
            return self._client.begin(outlined, on_end)
        except InferenceError as error:
            if ask.interface is not None:
                raise
            raise _not_run(ask, str(error), error.code) from None

    def _answer(self, result: Result, *, last: bool) -> tuple[Answered, list[memoryview]]:
        output, data = result
        return Answered(self._ask.call, output.parts, last, False, output.parameters), [data]


def _refused(ask: Ask, error: InferenceError) -> Refused:
    return Refused(ask.call, error.code.value, str(error), error.retry_after)


def _defect(asker: Asker, ask: Ask) -> InferenceError:
    """What is said of a defect of ours: the model is not to wait for ever."""
    log.exception("%s has asked %s", asker.name, ask.model)
    return InferenceError("The server had an error while processing this request.", Code.INTERNAL)


def _not_run(ask: Ask, why: str, code: Code = Code.INTERNAL) -> InferenceError:
    """An error of a request that no model has got, in Triton's words."""
    return InferenceError(f"Model {ask.model} - Error when running inference: {why}", code)
