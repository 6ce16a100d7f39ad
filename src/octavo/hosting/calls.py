"""Models that ask others: a frontend does it for them, and sends them what comes of it."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from octavo.errors import OctavoError
from octavo.hosting.ensemble import LATEST, EnsembleStep
from octavo.hosting.ensemble_client import Models
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference
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
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}

    def on_message(self, asker: Asker, message: Reply, data: memoryview) -> None:
        """A model wants something, or wants it no more."""
        match message:
            case Ask():
                self._start((asker.name, message.call), self._infer(asker, message, data))
            case Manage():
                self._start((asker.name, message.call), self._manage(asker, message, data))
            case Forget():
                task = self._running.pop((asker.name, message.call), None)
                if task is not None:
                    task.cancel()
                    asker.tell(Refused(message.call, Code.CANCELLED.value, "Request cancelled"))

    def are_ready(self, asks: Iterable[tuple[str, int]]) -> bool:
        """Whether models would compute a request now, each by its name and version."""
        return all(self._is_ready(name, version) for name, version in asks)

    def leave(self, asker: Asker) -> None:
        """The process has ended."""
        for key in [each for each in self._running if each[0] == asker.name]:
            self._running.pop(key).cancel()

    def _start(self, key: tuple[str, int], work: Coroutine[Any, Any, None]) -> None:
        def end(task: asyncio.Task[None]) -> None:
            if self._running.get(key) is task:  # and not one of the process that took the other's place
                del self._running[key]

        task = self._running[key] = asyncio.create_task(work)
        task.add_done_callback(end)

    async def _infer(self, asker: Asker, ask: Ask, data: memoryview) -> None:
        try:
            await self._ask(asker, ask, data)
        except InferenceError as error:
            asker.tell(Refused(ask.call, error.code.value, str(error), error.retry_after))
        except Exception:  # a defect of ours: the model is not to wait for ever
            log.exception("%s has asked %s", asker.name, ask.model)
            asker.tell(Refused(ask.call, Code.INTERNAL.value, "The server had an error while processing this request."))

    async def _ask(self, asker: Asker, ask: Ask, data: memoryview) -> None:
        inputs = {each.name: each.name for each in ask.parts}
        found = self._models.find(EnsembleStep(model=ask.model, inputs=inputs, outputs={}, version=ask.version))
        if found is None:
            raise _unknown(ask)
        info = found.client.info
        if ask.interface is not None and info is not None and info.interface.number != ask.interface:
            asker.tell(Described(ask.call, info.interface))
            return
        if ask.interface is None and (info is None or found.client.state in _ENDED):
            raise _not_run(ask, f"Failed for execute the inference request. Model '{ask.model}' is not ready.")
        use = self._models.hold(found)
        try:
            pending = self._begin(found.client, asker, ask, data)
            try:
                if ask.many:
                    await self._send_all(asker, ask, pending)
                else:
                    await pending.wait()
                    self._send(asker, ask, pending.only(), last=True)
            finally:
                found.client.leave(pending)
        finally:
            use.end()

    def _begin(self, client: ModelClient, asker: Asker, ask: Ask, data: memoryview) -> Pending:
        """Ask the model. Raises InferenceError: it does not take the request."""
        if not ask.many and client.info is not None and client.info.streams:
            raise _not_run(ask, DECOUPLED.format(ask.model))
        within = (*ask.details.within, asker.name) if ask.waits else ask.details.within
        parent = find(ask.details.trace)
        trace = None if parent is None else parent.child()
        if trace is not None:
            trace.request_id = ask.details.id
        inference = Inference(
            inputs=tensors_of(ask.parts, data),
            outputs=ask.outputs,
            priority=ask.priority,
            timeout=ask.timeout,
            details=replace(ask.details, within=within, trace=0),
            trace=trace,
        )
        try:
            return client.begin(inference)
        except InferenceError as error:
            if ask.interface is not None:
                raise
            raise _not_run(ask, str(error), error.code) from None

    async def _send_all(self, asker: Asker, ask: Ask, pending: Pending) -> None:
        last = False
        while result := await pending.next():
            last = result[0].last
            self._send(asker, ask, result, last=last)
        if not last:
            asker.tell(Answered(ask.call, empty=True))

    def _send(self, asker: Asker, ask: Ask, result: Result, *, last: bool) -> None:
        output, data = result
        asker.tell(Answered(ask.call, output.parts, last, False, output.parameters), [data])

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


def _unknown(ask: Ask) -> InferenceError:
    """There is no such model."""
    if ask.interface is None:
        return _not_run(ask, f"Request for unknown model: '{ask.model}' is not found", Code.NOT_FOUND)
    version = "" if ask.version == LATEST else f" in version {ask.version}"
    return InferenceError(f"there is no such model on this server{version}", Code.UNAVAILABLE)


def _not_run(ask: Ask, why: str, code: Code = Code.INTERNAL) -> InferenceError:
    """An error of a request that no model has got, in Triton's words."""
    return InferenceError(f"Model {ask.model} - Error when running inference: {why}", code)
