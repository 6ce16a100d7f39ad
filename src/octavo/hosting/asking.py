"""The end of an ensemble's process at which it asks models: the frontend does it whose request is being computed."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from octavo.errors import OctavoError
from octavo.hosting.computation import Computation
from octavo.hosting.endpoint import Endpoint, Peer
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.info import HostedInfo
from octavo.hosting.intake import Asked, Intake
from octavo.hosting.step_values import StepValues
from octavo.hosting.steps import Model, Step
from octavo.hosting.tensors import Encoded
from octavo.hosting.wire import Answered, Ask, Described, Details, Forget, Infer, Refused, Request, parts_of

KEPT = 256
"""Models whose interfaces are remembered."""

UNKNOWN = 0
"""In the place of an interface's number."""

GONE = "the server's process that was asked has ended"


class RequestScope:
    """A request of an ensemble's while it is computed. See `octavo.hosting.steps.Scope`."""

    def __init__(self, name: str, asking: "Asking", asked: Asked) -> None:
        self.name = name
        self.peer = asked.peer
        message = asked.message
        self.priority, self.timeout = message.priority, message.timeout
        details = (message.details if isinstance(message, Infer) else None) or Details()
        self.details = replace(details, path=(*details.path, name))
        self._asking = asking
        self._count = 0
        self._steps: set[Step] = set()
        self._over = False

    def begin(self, model: Model, inputs: Mapping[str, Any], *, items: bool) -> Step:
        """As `Scope.begin`."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise OctavoError(f"the model '{model.name}' can be asked in the ensemble's event loop only") from None
        step = Step(self, model, inputs, number=self._count, items=items)
        if self._over:
            raise step.failure("the request that it belongs to has ended", Code.CANCELLED)
        self._count += 1
        self._steps.add(step)
        self._asking.ask(self, step)
        return step

    def forget(self, step: Step) -> None:
        """As `Scope.forget`."""
        self.note_end(step)
        self._asking.forget(self, step)

    def note_end(self, step: Step) -> None:
        """A step has ended."""
        self._steps.discard(step)

    def end(self) -> None:
        """The request has ended: whatever is still being computed for it is of no use."""
        self._over = True
        steps, self._steps = self._steps, set()
        for step in steps:
            self._asking.forget(self, step)
            step.leave()


class Asking:
    """What an ensemble has asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = itertools.count(1)
        self._steps: dict[int, tuple[RequestScope, Step]] = {}
        self._known: dict[tuple[str, int], StepValues] = {}
        self._scopes: dict[int, RequestScope] = {}

    def begin(self, asked: Asked) -> RequestScope:
        """A request is going to be computed."""
        scope = self._scopes[asked.number] = RequestScope(self._name, self, asked)
        return scope

    def end(self, asked: Asked) -> None:
        """It has been computed, or nobody waits for it any more."""
        scope = self._scopes.pop(asked.number, None)
        if scope is not None:
            scope.end()

    def ask(self, scope: RequestScope, step: Step) -> None:
        """Ask for a step."""
        step.call = next(self._numbers)
        self._steps[step.call] = scope, step
        self._send(scope, step)

    def forget(self, scope: RequestScope, step: Step) -> None:
        """Nobody waits for a step any more."""
        if self._steps.pop(step.call, None) is not None:
            scope.peer.send(Forget(step.call))

    def _send(self, scope: RequestScope, step: Step, *, told: bool = False) -> None:
        """Ask for a step.

        Args:
            told: whether what is known of its model was said just now.
        """
        model, inputs, number = step.model, dict[str, Encoded](), UNKNOWN
        known = self._known.get((model.name, model.version))
        if known is not None:
            try:
                inputs = known.encode(step.inputs, items=step.items)
                step.values, number = known, known.interface.number
            except InferenceError as error:
                if told:
                    self._fail(step, error)
                    return
                # The model may be another one by now, and take it: that is what is asked then.
        ask = Ask(
            step.call,
            model.name,
            model.version,
            parts_of(inputs),
            model.outputs,
            scope.timeout,
            scope.details,
            many=True,
            waits=False,
            priority=scope.priority,
            interface=number,
        )
        scope.peer.send(ask, [each.data for each in inputs.values()])

    def _fail(self, step: Step, error: InferenceError) -> None:
        scope, _ = self._steps.pop(step.call)
        scope.note_end(step)
        step.end(step.failure(str(error), error.code, error.retry_after))

    # --- what frontends say -------------------------------------------------------------------------------------------

    def on_message(self, message: Answered | Refused | Described, data: memoryview) -> None:
        """Something has come of a step."""
        found = self._steps.get(message.call)
        if found is None:
            return
        scope, step = found
        if isinstance(message, Described):
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[step.model.name, step.model.version] = StepValues(step.model.name, message.interface)
            self._send(scope, step, told=True)
        elif isinstance(message, Refused):
            self._fail(step, InferenceError(message.message, Code(message.code), retry_after=message.retry_after))
        else:
            if not message.empty:
                step.put(message.parts, data)
            if message.last and self._steps.pop(step.call, None) is not None:
                scope.note_end(step)
                step.end()

    def on_left(self, peer: Peer) -> None:
        """A frontend has ended."""
        for step in [step for scope, step in self._steps.values() if scope.peer is peer]:
            self._fail(step, InferenceError(GONE, Code.UNAVAILABLE))


class AskingIntake(Intake):
    """What frontends have asked an ensemble for, and what they say of that for which it has asked them."""

    def __init__(
        self, endpoint: Endpoint, computation: Computation, info: HostedInfo, at_once: int, asking: Asking
    ) -> None:
        super().__init__(endpoint, computation, info, at_once)
        self._asking = asking

    def _hear(self, peer: Peer, message: Request, data: memoryview) -> None:
        if isinstance(message, Answered | Refused | Described):
            self._asking.on_message(message, data)

    def _leave(self, peer: Peer) -> list[Asked]:
        self._asking.on_left(peer)
        return super()._leave(peer)
