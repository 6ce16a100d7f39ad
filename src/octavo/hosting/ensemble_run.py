"""One request on its way through an ensemble.

Nothing here waits: a step is asked within the event that brought the last of its inputs, and its tensors are the bytes
that came. Only results of steps that have any number of them are read by a task.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from msgspec import structs

from octavo.hosting.ensemble_graph import REQUEST, Graph, Plan
from octavo.hosting.ensemble_links import Given, Link, tensors_in
from octavo.hosting.ensemble_turns import Turns
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import Inference, Outline, Outlined
from octavo.hosting.model_client import ModelClient
from octavo.hosting.pending import Pending, Result
from octavo.hosting.tensors import Encoded
from octavo.hosting.wire import Output, Part, parts_of, tensors_of

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Value:
    """A tensor, and how often it will be taken yet. A model may leave one out, for one that need not have it."""

    tensor: Encoded | None
    reads: int


@dataclass(slots=True, eq=False)
class Visit:
    """A request to a step.

    Attributes:
        number: of the step. round: of the results of a step that has many, all the tensors that come of one have its
            number. began: `time.perf_counter_ns()`, when it was asked.
        link, given: what leads to it, and the tensors, if they go on as they are.
        outline: what the step is asked for, if that is known already.
    """

    number: int
    round: int
    link: Link | None = None
    given: Given | None = None
    outline: Outline | None = None
    began: int = 0
    pending: Pending | None = None
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None


class Run:
    """A request from its beginning to its end.

    Args:
        clients: of the steps. turns: of the steps.
        asked: the request. Each step is treated as it says.
        on_result: called with each result of an ensemble that has many, in their order.
        on_end: called once: with the only result, or an error, or neither behind many results.

    Attributes:
        compute, queue: nanoseconds that steps have computed, and have waited before they did.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        *,
        clients: Sequence[ModelClient],
        turns: Sequence[Turns[Visit]],
        asked: Outlined,
        number: int,
        on_result: Callable[[Result], None],
        on_end: Callable[[Result | None, InferenceError | None], None],
    ) -> None:
        self.compute = 0
        self.queue = 0
        self._graph = graph
        self._plan = plan
        self._clients = clients
        self._turns = turns
        self._asked = asked
        self._number = number
        self._on_result = on_result
        self._on_end = on_end
        self._values: dict[tuple[str, int], _Value] = {}
        self._visits: set[Visit] = set()
        self._rounds: dict[int, int] = {}
        self._results: dict[int, Result] = {}
        self._next_result = 0
        self._room: asyncio.Event | None = None
        self._over = False

    def begin(self) -> None:
        """Go as far as that is possible now."""
        given = (self._asked.outline.parts, self._asked.tensors)
        if not self._pass_on(REQUEST, 0, given):
            inputs = tensors_in(given)
            self._arrive(0, [(spec.name, inputs.get(spec.name)) for spec in self._graph.ensemble.inputs])
        self._end_if_done()

    def stop(self) -> None:
        """Nobody waits for it any more."""
        self._over = True
        visits, self._visits = self._visits, set()
        self._values.clear()
        self._results.clear()
        for visit in visits:
            if visit.task is not None:
                visit.task.cancel()
            if visit.pending is not None:
                self._clients[visit.number].leave(visit.pending)
        for visit in visits:  # others are asked only when nothing of this is computed any more
            self._give_back(visit)

    # --- tensors ------------------------------------------------------------------------------------------------------

    def _arrive(self, round_: int, tensors: Iterable[tuple[str, Encoded | None]]) -> None:
        """Tensors are there: ask the steps that lacked nothing else."""
        plan, values = self._plan, self._values
        readers: dict[int, None] = {}
        wanted = False
        for name, tensor in tensors:
            reads = plan.reads.get(name)
            if reads:
                values[name, round_] = _Value(tensor, reads)
                readers.update(dict.fromkeys(plan.readers[name]))
                wanted = wanted or name in plan.outputs
        ready = [each for each in readers if self._has(self._graph.step(each).inputs.values(), round_)]
        if wanted and self._has(plan.outputs, round_):
            self._give(round_, self._result(round_))
        for number in ready:
            if not self._over:
                self._visit(Visit(number, round_))

    def _pass_on(self, number: int, round_: int, given: Given) -> bool:
        """Tensors are there, of a step or of the request: ask whoever takes them as they are, if anybody does."""
        link = self._plan.links.get(number)
        if link is None:
            return False
        outline = link.known.find(given[0], self._clients[link.step])
        if outline is None and not link.takes(given[0]):
            return False
        self._visit(Visit(link.step, round_, link, given, outline))
        return True

    def _has(self, names: Iterable[str], round_: int) -> bool:
        return all((name, round_) in self._values for name in names)

    def _take(self, name: str, round_: int) -> Encoded | None:
        value = self._values[name, round_]
        value.reads -= 1
        if not value.reads:
            del self._values[name, round_]
        return value.tensor

    def _result(self, round_: int) -> Result:
        found: dict[str, Encoded] = {}
        for name in self._plan.outputs:
            tensor = self._take(name, round_)
            if tensor is not None:
                shape = self._graph.outputs.get(name)
                found[name] = tensor if shape is None else shape.fit(tensor)
        data = [each.data for each in found.values()]
        return Output(self._number, parts_of(found)), memoryview(data[0] if len(data) == 1 else b"".join(data))

    def _give(self, round_: int, result: Result) -> None:
        """Pass a result on, behind those before it."""
        if not self._graph.info.streams:
            self._finish(result)
            return
        self._results[round_] = result
        while not self._over and (following := self._results.pop(self._next_result, None)) is not None:
            self._next_result += 1
            if (
                self._visits or self._results
            ):  # others may follow, and each step has said of its own that it is the last
                following = (structs.replace(following[0], last=False), following[1])
            self._on_result(following)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _visit(self, visit: Visit) -> None:
        self._visits.add(visit)
        began = self._turns[visit.number].take(visit, self._ask)
        if not began and self._asked.timeout:
            visit.timer = asyncio.get_running_loop().call_later(self._asked.timeout, self._expire, visit)

    def _expire(self, visit: Visit) -> None:
        self._fail(visit, InferenceError("Request timeout expired", Code.UNAVAILABLE))

    def _ask(self, visit: Visit) -> None:
        """It is its turn."""
        if visit.timer is not None:
            visit.timer.cancel()
        visit.began = time.perf_counter_ns()
        client = self._clients[visit.number]
        try:
            outlined = self._outlined(visit, client)
            if self._graph.models[visit.number].streams:
                visit.task = asyncio.get_running_loop().create_task(self._follow(visit, outlined))
            else:
                visit.pending = client.begin(outlined, partial(self._on_answer, visit))
        except InferenceError as error:
            self._fail(visit, error)
        if self._room is not None:
            self._room.set()

    def _outlined(self, visit: Visit, client: ModelClient) -> Outlined:
        """What a step is asked for. Raises InferenceError: it does not take that."""
        number, asked, link = visit.number, self._asked, visit.link
        if visit.given is None:
            inputs = self._inputs(visit)
            visit.given = parts_of(inputs), [each.data for each in inputs.values()]
        parts, tensors = visit.given
        known, outline = self._graph.known[number] if link is None else link.known, visit.outline
        if outline is None or outline.info is not client.info:  # it may have waited for its turn
            outline = known.find(parts, client)
        if outline is None:
            named = tensors_in(visit.given) if link is None else self._fit(number, link.inputs(visit.given))
            wanted = Inference(inputs=named, outputs=tuple(self._graph.step(number).outputs))
            outline = client.outline(wanted).outline
            known.learn(parts, outline)
        trace = None if asked.trace is None else asked.trace.child()
        return Outlined(outline, tensors, asked.priority, asked.timeout, asked.details, trace)

    def _inputs(self, visit: Visit) -> dict[str, Encoded]:
        """The tensors that a step takes, which have come one by one."""
        step = self._graph.step(visit.number)
        taken = {tensor: self._take(tensor, visit.round) for tensor in dict.fromkeys(step.inputs.values())}
        found = {name: taken[tensor] for name, tensor in step.inputs.items()}
        return self._fit(visit.number, {name: each for name, each in found.items() if each is not None})

    def _fit(self, number: int, inputs: dict[str, Encoded]) -> dict[str, Encoded]:
        """The same in the shapes that a step takes them in."""
        shapes = self._graph.inputs[number]
        return {name: shapes[name].fit(each) if name in shapes else each for name, each in inputs.items()}

    def _waits(self, number: int) -> bool:
        """Whether what comes of a step's results waits for a turn."""
        return any(not each.began and each.number in self._graph.followers[number] for each in self._visits)

    def _on_answer(self, visit: Visit, pending: Pending) -> None:
        """A step has computed its one result, or failed."""
        try:
            output, data = pending.only()
            self._visits.discard(visit)
            if output.timing is not None:
                self.compute += output.timing.compute
                self.queue += output.timing.queue
            self._receive(visit.number, visit.round, output.parts, data)
            self._give_back(visit)
            self._end_if_done()
        except InferenceError as error:
            self._fail(visit, error)
        except Exception:  # a defect of ours, within an event of somebody else's
            log.exception("the ensemble %s failed", self._graph.ensemble.name)
            self._fail(visit, InferenceError("the server had an error", Code.INTERNAL))

    def _receive(self, number: int, round_: int, parts: tuple[Part, ...], data: memoryview) -> None:
        if self._over:
            return
        names = self._graph.step(number).outputs
        if number == self._plan.last and all(part.name in names for part in parts):
            renamed = tuple([Part(names[part.name], part.datatype, part.shape, part.size) for part in parts])
            self._give(round_, (Output(self._number, renamed), data))
        elif not self._pass_on(number, round_, (parts, (data,))):
            found = tensors_of(parts, data)
            self._arrive(round_, [(tensor, found.get(name)) for name, tensor in names.items()])

    async def _follow(self, visit: Visit, inference: Outlined) -> None:
        """Pass on the results of a step that has any number of them, as fast as others take them."""
        client, number = self._clients[visit.number], visit.number
        try:
            async with aclosing(client.each_result(inference)) as results:
                async for output, data in results:
                    round_ = self._rounds.get(number, 0)
                    self._rounds[number] = round_ + 1
                    self._receive(number, round_, output.parts, data)
                    while self._waits(number):
                        self._room = self._room or asyncio.Event()
                        self._room.clear()
                        await self._room.wait()
            self.compute += time.perf_counter_ns() - visit.began
            self._visits.discard(visit)
            self._give_back(visit)
            self._end_if_done()
        except InferenceError as error:
            self._fail(visit, error)
        except Exception:  # a defect of ours, of which whoever waits has to hear
            log.exception("the ensemble %s failed", self._graph.ensemble.name)
            self._fail(visit, InferenceError("the server had an error", Code.INTERNAL))

    def _give_back(self, visit: Visit) -> None:
        if visit.timer is not None:
            visit.timer.cancel()
        self._turns[visit.number].give_back(visit)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end_if_done(self) -> None:
        if self._over or self._visits:
            return
        if self._graph.info.streams:
            self._finish(None)
        else:
            name = self._graph.ensemble.name
            why = "unexpected deadlock, at least one output is not set while no more ensemble steps can be made"
            self._over = True
            self._on_end(None, InferenceError(f"in ensemble '{name}', {why}", Code.INTERNAL))

    def _finish(self, result: Result | None) -> None:
        self._over = True
        self._on_end(result, None)

    def _fail(self, visit: Visit, error: InferenceError) -> None:
        """A step has no result: neither has the request, and nothing else of it is computed any more."""
        if self._over:
            return
        self._visits.add(visit)  # its turn is to be given back, too
        self.stop()
        graph, step = self._graph, self._graph.step(visit.number)
        text = f"in ensemble '{graph.ensemble.name}', step {visit.number} of model '{step.model}': {error}"
        for name, tensor in step.inputs.items():
            if f"'{name}'" in str(error):
                text = text.removesuffix(".") + f". Its input '{name}' is '{tensor}', which {graph.origin(tensor)}."
        self._on_end(None, InferenceError(text, error.code, retry_after=error.retry_after))
