"""A frontend's end of an ensemble: it asks the models of the steps, as they are when a request begins."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from octavo.errors import ConfigError
from octavo.hosting.ensemble import Ensemble, EnsembleStep
from octavo.hosting.ensemble_graph import Graph
from octavo.hosting.ensemble_run import Run, Visit
from octavo.hosting.ensemble_turns import Turns
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BatchStatistics, BodyCall, Inference, Outlined
from octavo.hosting.info import HostedInfo
from octavo.hosting.model_client import ModelClient
from octavo.hosting.pending import Pending, Result
from octavo.hosting.wire import Infer
from octavo.worker.control import WorkerState

LOADING_RETRY_SECONDS = 2.0


class Use(Protocol):
    """A hold on a model: it stays, whatever takes its name meanwhile."""

    def end(self) -> None:
        """Let go of it."""
        ...


class StepModel(Protocol):
    """What stands behind a step."""

    @property
    def client(self) -> ModelClient:
        """Asks it."""
        ...


class Models(Protocol):
    """The models that steps may have."""

    def find(self, step: EnsembleStep) -> StepModel | None:
        """What stands behind a step now, the same object as long as that is the same; None if there is no such."""
        ...

    def hold(self, model: StepModel) -> Use:
        """Have it stay."""
        ...


@dataclass(slots=True, eq=False)
class _Bound:
    """An ensemble and its models.

    Attributes:
        clients: of the models. infos: what these were when they were found to fit together.
        requests: that are on their way through them. uses: keep the models as long as there are any.
    """

    models: Sequence[StepModel]
    clients: Sequence[ModelClient]
    infos: Sequence[HostedInfo]
    graph: Graph
    requests: int = 0
    uses: Sequence[Use] = ()

    def begin(self, models: Models) -> None:
        """A request begins."""
        if not self.requests:
            self.uses = [models.hold(each) for each in {id(each): each for each in self.models}.values()]
        self.requests += 1

    def end(self) -> None:
        """A request has ended."""
        self.requests -= 1
        if not self.requests:
            uses, self.uses = self.uses, ()
            for use in uses:
                use.end()


@dataclass(slots=True, eq=False)
class _Running:
    run: Run
    bound: _Bound


class EnsembleClient(ModelClient):
    """Asks the models of an ensemble's steps.

    It is as ready as the least ready of them. A request ends on the models that it began with.

    Args:
        models: to find them among. version: of the ensemble.
    """

    def __init__(self, ensemble: Ensemble, models: Models, version: str = "1") -> None:
        super().__init__(version)
        self._ensemble = ensemble
        self._models = models
        self._turns: list[Turns[Visit]] = [Turns(ensemble.max_inflight_requests) for _ in ensemble.steps]
        self._numbers = itertools.count(secrets.randbits(31) << 32)
        self._running: dict[int, _Running] = {}
        self._bound: _Bound | None = None
        self._looking = False
        self._closed = False

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Where this is used. To ask for it costs a call of the operating system each time."""
        return asyncio.get_running_loop()

    # --- what it is made of -------------------------------------------------------------------------------------------

    @property
    def state(self) -> WorkerState:
        """As `ModelClient.state`."""
        return self._look()[0]

    @property
    def failure(self) -> str | None:
        """As `ModelClient.failure`."""
        return self._look()[1]

    @property
    def available(self) -> HostedInfo | None:
        """As `ModelClient.available`: what has failed or stopped is nothing."""
        return self.info

    @property
    def info(self) -> HostedInfo | None:
        """As `ModelClient.info`."""
        bound = self._look()[2]
        return None if bound is None else bound.graph.info

    @property
    def edition(self) -> str:
        """As `ModelClient.edition`: of all its models."""
        bound = self._bound
        return "" if bound is None else ", ".join([client.edition for client in bound.clients])

    def _look(self) -> tuple[WorkerState, str | None, _Bound | None]:
        """How it stands with the models at the moment."""
        if self._closed:
            return WorkerState.STOPPED, None, None
        if (bound := self._bound) is not None and self._is_as_it_was(bound):
            return WorkerState.READY, None, bound
        if self._looking:
            return WorkerState.FAILED, f"circular dependency between ensembles: {self._ensemble.name} -> ...", None
        self._looking = True
        try:
            return self._found()
        finally:
            self._looking = False

    def _is_as_it_was(self, bound: _Bound) -> bool:
        """Whether the models are those that they were, and ready: so it is nearly always."""
        find, ready = self._models.find, WorkerState.READY
        for step, model, client, info in zip(
            self._ensemble.steps, bound.models, bound.clients, bound.infos, strict=True
        ):
            if find(step) is not model or client.info is not info or client.state is not ready:
                return False
        return True

    def _found(self) -> tuple[WorkerState, str | None, _Bound | None]:
        name, state = self._ensemble.name, WorkerState.READY
        models: list[StepModel] = []
        infos: list[HostedInfo] = []
        for step in self._ensemble.steps:
            model = self._models.find(step)
            if model is None:
                return (
                    WorkerState.FAILED,
                    f"ensemble '{name}' depends on '{step.model}' which has no loaded version",
                    None,
                )
            client = model.client
            now, info = client.state, client.info
            if now in (WorkerState.FAILED, WorkerState.STOPPED):
                why = f" Model '{step.model}' loading failed with error: {client.failure}" if client.failure else ""
                text = f"ensemble '{name}' depends on '{step.model}' which has no loaded version.{why}"
                return WorkerState.FAILED, text, None
            if now is WorkerState.LOADING or info is None:
                state = WorkerState.LOADING
            elif now is WorkerState.RESTARTING and state is WorkerState.READY:
                state = now
            models.append(model)
            if info is not None:
                infos.append(info)
        if len(infos) < len(models):
            return state, None, None
        bound = self._bound
        if bound is None or not _same(bound.models, models) or not _same(bound.infos, infos):
            try:
                bound = _Bound(models, [each.client for each in models], infos, Graph(self._ensemble, infos))
            except ConfigError as error:
                return WorkerState.FAILED, str(error), None
            self._bound = bound
        return state, None, bound

    def _require(self) -> _Bound:
        """The models. Raises InferenceError: nothing can be asked of one."""
        state, failure, bound = self._look()
        if bound is not None:
            return bound
        match state:
            case WorkerState.FAILED:
                raise InferenceError(f"the model failed: {failure}", Code.UNAVAILABLE)
            case WorkerState.STOPPED:
                raise InferenceError("the server is shutting down", Code.UNAVAILABLE)
        raise InferenceError("the model is loading", Code.UNAVAILABLE, retry_after=LOADING_RETRY_SECONDS)

    async def ready(self) -> HostedInfo:
        """As `ModelClient.ready`."""
        for step in self._ensemble.steps:
            model = self._models.find(step)
            if model is not None:
                await model.client.ready()
        return self._require().graph.info

    # --- requests -----------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """As `ModelClient.pending`."""
        return len(self._running)

    def outline(self, inference: Inference) -> Outlined:
        """As `ModelClient.outline`."""
        return self._outlined(self._require().graph.info, inference)

    def begin(self, inference: Inference | Outlined, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `ModelClient.begin`."""
        bound = self._require()
        if isinstance(inference, Inference):
            inference = self.outline(inference)
        outline, number = inference.outline, next(self._numbers)
        message = Infer(number, outline.parts, time.monotonic(), outline.outputs, inference.priority, inference.timeout)
        pending = Pending(self._loop, message, inference.tensors, outline.items, 1)
        if inference.trace is not None:
            pending.start_trace(inference.trace, self._ensemble.name, self.version)
        run = Run(
            bound.graph,
            bound.graph.plan(outline.outputs),
            clients=bound.clients,
            turns=self._turns,
            asked=inference,
            number=number,
            on_result=partial(self._on_result, pending),
            on_end=partial(self._on_end, pending),
        )
        self._running[number] = _Running(run, bound)
        bound.begin(self._models)
        run.begin()
        pending.require_success()
        pending.on_end = on_end
        if pending.ended and on_end is not None:
            on_end(pending)
        return pending

    def begin_call(self, call: BodyCall, on_end: Callable[[Pending], None] | None = None) -> Pending:
        """As `ModelClient.begin_call`."""
        raise InferenceError(f"model '{self._ensemble.name}' takes tensors, and no bodies of its own")

    def leave(self, pending: Pending) -> None:
        """As `ModelClient.leave`."""
        if not pending.settled:
            self.statistics.failure += 1
            self.statistics.canceled += 1
            self._running[pending.number].run.stop()
            pending.on_end = None
            self._end(pending)

    def close(self) -> None:
        """As `ModelClient.close`."""
        self._closed = True

    # --- what comes of them -------------------------------------------------------------------------------------------

    def _on_result(self, pending: Pending, result: Result) -> None:
        pending.put(*result)
        if pending.overflows:
            self._running[pending.number].run.stop()
            self._on_end(pending, None, InferenceError("the client does not read as fast as the model writes"))

    def _on_end(self, pending: Pending, result: Result | None, error: InferenceError | None) -> None:
        seen, run = self.statistics, self._running[pending.number].run
        nanoseconds = time.perf_counter_ns() - pending.arrived
        if error is not None:
            seen.failure += 1
            seen.failure_time += nanoseconds
            seen.rejected += error.code is Code.UNAVAILABLE
        else:
            seen.success += 1
            seen.success_time += nanoseconds
            seen.last = time.time()
            seen.inferences += pending.items
            seen.executions += 1
            seen.queue += run.queue
            seen.compute += run.compute
            batch = seen.batches.setdefault(pending.items, BatchStatistics())
            batch.count += 1
            batch.compute += run.compute
        self._end(pending, result, error)

    def _end(self, pending: Pending, result: Result | None = None, error: InferenceError | None = None) -> None:
        self._running.pop(pending.number).bound.end()
        pending.settle(result, error)
        pending.end()


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))
