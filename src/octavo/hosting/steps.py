"""Models that somebody's own ensemble asks: their names, and what comes of them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from octavo.errors import ConfigError, OctavoError
from octavo.hosting.ensemble import LATEST
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.pending import MAX_UNREAD_BYTES
from octavo.hosting.wire import Part

if TYPE_CHECKING:  # with what only a model's process needs
    from octavo.hosting.step_values import StepValues


class Model:
    """A model of the server, for an ensemble to ask: the annotation of a parameter, or its default, that names it.

    To call it begins a step, at once. `await` has what it answers, `async for` each piece of what a model streams:

        label = await sentiment(text="I love it")
        async for piece in llm(text_input="Name three rivers.", stream=True):
            print(piece["text_output"])

    A step is given the values of one item by the names of the model's inputs, and answers as `/predict` does, with
    arrays where that has lists. Its method `cancel` ends it. One that fails raises `octavo.InferenceError`.

    Args:
        name: that requests use. version: None takes the newest.
        outputs: those that are wanted, of a model of tensors; none for all that it gives unless they are named.

    Raises:
        ConfigError: a name or version that no model has.
    """

    __slots__ = ("name", "outputs", "version")

    def __init__(self, name: str, *, version: int | None = None, outputs: Sequence[str] = ()) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"octavo.Model is given the name of a model, not {name!r:.80}; models are @octavo.model")
        if version is not None and (not isinstance(version, int) or version < 1):
            raise ConfigError(f"the version of the model '{name}' is {version!r:.80}; give a number from 1 on, or none")
        if isinstance(outputs, str) or not all(isinstance(each, str) for each in outputs):
            raise ConfigError(f"the outputs of the model '{name}' are {outputs!r:.80}; give a list of their names")
        self.name = name
        self.version = LATEST if version is None else version
        self.outputs = tuple(outputs)

    def __call__(self, /, **inputs: Any) -> "Step":
        """Begin a step with one item."""
        return _scope(self).begin(self, inputs, items=False)

    def batch(self, /, **inputs: Any) -> "Step":
        """Begin a step with several items, which the model computes together.

        Args:
            inputs: an array with a first dimension over the items for what is an array, else a list.
        """
        return _scope(self).begin(self, inputs, items=True)

    def __repr__(self) -> str:
        return f"octavo.Model({self.name!r})"


class Scope(Protocol):
    """A request that an ensemble computes. Attributes: name: of the ensemble."""

    name: str

    def begin(self, model: Model, inputs: Mapping[str, Any], *, items: bool) -> "Step":
        """Ask a model. Raises OctavoError: that cannot be done from here, or no more."""
        ...

    def forget(self, step: "Step") -> None:
        """Nobody waits for what comes of a step any more."""
        ...


current: ContextVar[Scope | None] = ContextVar("current", default=None)
"""The request that the running code computes."""


def _scope(model: Model) -> Scope:
    scope = current.get()
    if scope is None:
        raise OctavoError(f"the model '{model.name}' can be asked only while an @octavo.ensemble computes a request")
    return scope


class Step:
    """What comes of a model that was asked. It is asked at once, whether or not somebody waits already.

    A step that fails raises `octavo.InferenceError`. One that nobody waits for when the request ends is cancelled.

    Attributes:
        model: that was asked. items: whether for several items. inputs: what for, until it is known that they fit.
        number: among the steps of the request, from 0 on. call: among those of the process.
        values: how the model's tensors are values.
    """

    def __init__(self, scope: Scope, model: Model, inputs: Mapping[str, Any], *, number: int, items: bool) -> None:
        self.model = model
        self.items = items
        self.inputs = inputs
        self.number = number
        self.call = 0
        self.values: StepValues | None = None
        self._scope = scope
        self._results: deque[tuple[tuple[Part, ...], memoryview]] = deque()
        self._unread = 0
        self._changed = asyncio.Event()
        self._ended = self._over = False
        self._error: InferenceError | None = None
        self._only: list[Any] = []

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while await self._has_result():
                yield self._take()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Have it computed no longer, if it still is."""
        if not self._ended:
            self._scope.forget(self)
            self.end(self.failure("it was cancelled", Code.CANCELLED))

    async def _wait(self) -> Any:
        while not self._ended and len(self._results) < 2:
            await self._change()
        if self._error is not None:
            raise self._error
        if not self._only:
            if len(self._results) > 1:
                self.cancel()
                why = "the model streams: a request has any number of results; use 'async for'"
                raise self.failure(why, Code.INTERNAL)
            if not self._results:
                raise self.failure("the model gave no result", Code.INTERNAL)
            self._only.append(self._take())
        return self._only[0]

    async def _has_result(self) -> bool:
        """Wait for the next result. Returns whether there is one. Raises InferenceError: it failed."""
        while not self._results:
            if self._error is not None:
                raise self._error
            if self._ended:
                return False
            await self._change()
        return True

    async def _change(self) -> None:
        """Wait until something has come. To cancel that cancels the step."""
        self._changed.clear()
        try:
            await self._changed.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._over:
            raise asyncio.CancelledError

    def _take(self) -> Any:
        parts, data = self._results.popleft()
        self._unread -= len(data)
        assert self.values is not None, "it has been asked"
        try:
            return self.values.decode(parts, data, items=self.items)
        except InferenceError as error:
            raise self.failure(str(error), Code.INTERNAL) from None

    # --- what happens to it -------------------------------------------------------------------------------------------

    def put(self, parts: tuple[Part, ...], data: memoryview) -> None:
        """A result has come."""
        self.inputs = {}
        self._unread += len(data)
        if self._unread > MAX_UNREAD_BYTES:
            self._results.clear()
            self._scope.forget(self)
            self.end(self.failure("the ensemble does not read as fast as the model writes", Code.INTERNAL))
            return
        self._results.append((parts, data))
        self._changed.set()

    def end(self, error: InferenceError | None = None) -> None:
        """No other result will come, or there is none for a reason."""
        self._ended, self._error = True, error
        self.inputs = {}
        self._changed.set()

    def leave(self) -> None:
        """Its request has ended."""
        self._over = True
        self._results.clear()
        self.end()

    def failure(self, why: str, code: Code, retry_after: float | None = None) -> InferenceError:
        """Why there is no result, with which step it is about."""
        step = f"step {self.number} of model '{self.model.name}'"
        return InferenceError(f"in ensemble '{self._scope.name}', {step}: {why}", code, retry_after=retry_after)
