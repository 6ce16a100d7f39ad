"""A model in somebody's own Python: a function, or a class with `load` and `predict`."""

from __future__ import annotations

import asyncio
import collections.abc
import inspect
import logging
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError, InvalidRequest
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.options import OPTIONS, EnsembleOptions, ModelOptions
from octavo.hosting.steps import Model

log = logging.getLogger(__name__)

T = TypeVar("T")

Rows = list[Any] | NDArray[Any]
"""Results over requests."""

NOT_LOADED = "load it first"

_NOT_FAILURES = (GeneratorExit, asyncio.CancelledError)
"""What ends code from outside. Everything else that it raises is its failure, whatever that derives from: errors of
libraries in Rust are no `Exception`."""
_OVER_REQUESTS = (list, tuple, np.ndarray)
_LISTS = (list, collections.abc.Sequence)
_STREAMS = (collections.abc.Iterator, collections.abc.Generator, collections.abc.Iterable)
_ASYNC_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable)


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a request has under a name.

    Attributes:
        type: of one request's value; Any if nobody said.
        stacked: whether the values of several requests are passed as one array instead of as a list.
        default: for requests that leave it out; `inspect.Parameter.empty` if none may.
    """

    name: str
    type: Any
    stacked: bool
    default: Any

    @property
    def required(self) -> bool:
        """Whether every request has it."""
        return self.default is inspect.Parameter.empty


class OwnModel:
    """One instance of a model: what it takes, and what comes of it.

    Attributes:
        name: that requests use. parameters: by name. result: the type of one request's result, or of its pieces.
        models: that it asks, by the parameters that are given them. is_ensemble: whether it may ask any.
        streams: whether a request has any number of results. asynchronous: whether it is called in an event loop.
    """

    def __init__(self, target: Callable[..., Any], options: ModelOptions | None = None) -> None:
        """Raises ConfigError: no model."""
        decorated: ModelOptions = getattr(target, OPTIONS, ModelOptions())
        self.options = decorated if options is None else options
        self.name = self.options.name or getattr(target, "__name__", "").lower()
        self._target = target
        self._what = getattr(target, "__qualname__", repr(target))
        predict = self._predict_of(target)
        hints = self._hints(predict)
        called = inspect.unwrap(predict)
        self.asynchronous = inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)
        returned = hints.pop("return", Any)
        self.streams = inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)
        if self.streams and self.options.max_batch_size:
            raise ConfigError(f"{self._what} is a generator, which answers one request: leave max_batch_size out")
        self.is_ensemble = isinstance(self.options, EnsembleOptions)
        if self.is_ensemble and not self.asynchronous:
            raise ConfigError(f"{self._what} is an ensemble, which waits for its models: write `async def`")
        self.models: dict[str, Model] = {}
        self.parameters = {each.name: each for each in self._parameters(predict, hints)}
        self.result = self._result(returned)
        self._call: Callable[..., Any] | None = None if inspect.isclass(target) else target

    def load(self) -> None:
        """Make the instance, and have it do what it must before its first request. Raises whatever the code does."""
        loading = self._make()
        if inspect.isawaitable(loading):
            asyncio.run(_awaited(loading))

    async def aload(self) -> None:
        """The same in the event loop that it is to be called in, for one that is asynchronous."""
        loading = self._make()
        if inspect.isawaitable(loading):
            await loading

    def _make(self) -> object:
        """The instance; returns what its `load` does."""
        if not inspect.isclass(self._target):
            return None
        made: Any = self._target()
        self._call = made.predict
        return made.load() if hasattr(made, "load") else None

    def compute(self, requests: Sequence[Mapping[str, Any]]) -> Rows:
        """`acompute` of a model that is not asynchronous."""
        return self._done(self.acompute(requests))

    def _done(self, computing: Coroutine[Any, Any, Rows]) -> Rows:
        try:
            computing.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        raise AssertionError(f"{self.name} waits for something, and needs an event loop")

    async def acompute(self, requests: Sequence[Mapping[str, Any]]) -> Rows:
        """What comes of requests, in their order; an InferenceError in the place of one that failed.

        Without a batch size each is computed alone.

        Args:
            requests: values by the names of the parameters; those that may be left out may be missing.
        """
        if not self.options.max_batch_size:
            return [await self._alone(request) for request in requests]
        return await self.acolumns(self.columns(requests), len(requests))

    async def acolumns(self, columns: Mapping[str, Any], count: int) -> Rows:
        """The same of a model with a batch size, for requests whose values stand together.

        When a whole batch fails, so that nobody knows which request is to blame, each is computed alone.

        Args:
            columns: by the names of all parameters: a list over the requests, an array with a first dimension over
                them, or None for an array that none of them has.
        """
        try:
            return self._rows(await self._invoke(columns), count)
        except _NOT_FAILURES:
            raise
        except BaseException as error:  # a model ends itself, not the server
            if count == 1:
                return [self.failure(error)]
            log.warning("%s failed on %d requests, %r; computing each alone", self.name, count, error)
        found: list[Any] = []
        for at in range(count):
            row = {name: None if column is None else column[at : at + 1] for name, column in columns.items()}
            found += await self.acolumns(row, 1)
        return found

    def compute_columns(self, columns: Mapping[str, Any], count: int) -> Rows:
        """`acolumns` of a model that is not asynchronous."""
        return self._done(self.acolumns(columns, count))

    def columns(self, requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The values of each parameter over requests, as `acolumns` has them."""
        columns: dict[str, Any] = {}
        for each in self.parameters.values():
            values = [request.get(each.name, each.default) for request in requests]
            columns[each.name] = _stacked(values) if each.stacked else values
        return columns

    def stream(self, request: Mapping[str, Any]) -> Iterator[Any]:
        """The results of a request, of a model that streams. Raises InferenceError."""
        assert self._call is not None, NOT_LOADED
        try:
            yield from self._call(**self._with_defaults(request))
        except _NOT_FAILURES:
            raise
        except BaseException as error:
            raise self.failure(error) from error

    async def astream(self, request: Mapping[str, Any]) -> AsyncIterator[Any]:
        """The same of one that is asynchronous."""
        assert self._call is not None, NOT_LOADED
        try:
            async for each in self._call(**self._with_defaults(request)):
                yield each
        except _NOT_FAILURES:
            raise
        except BaseException as error:
            raise self.failure(error) from error

    # --- how it is called ---------------------------------------------------------------------------------------------

    async def _invoke(self, arguments: Mapping[str, Any]) -> Any:
        assert self._call is not None, NOT_LOADED
        result = self._call(**arguments)
        if isinstance(result, _OVER_REQUESTS) or not inspect.isawaitable(result):
            return result
        # A plain function may give something to wait for, and has no event loop.
        return await result if self.asynchronous else asyncio.run(_awaited(result))

    async def _alone(self, request: Mapping[str, Any]) -> Any:
        try:
            result = await self._invoke(self._with_defaults(request))
        except _NOT_FAILURES:
            raise
        except BaseException as error:
            return self.failure(error)
        return self.failure(result) if isinstance(result, Exception) else result

    def _with_defaults(self, request: Mapping[str, Any]) -> dict[str, Any]:
        values = {each.name: request.get(each.name, each.default) for each in self.parameters.values()}
        return {**values, **self.models} if self.models else values

    def _rows(self, result: Any, count: int) -> Rows:
        """A batch's result by request: an array as it is."""
        if not isinstance(result, _OVER_REQUESTS):
            raise TypeError(f"predict returned {_kind(result)}, no list over {count} requests")
        if isinstance(result, np.ndarray) and not result.ndim:
            raise TypeError(f"predict returned an array without dimensions, none over {count} requests")
        if len(result) != count:
            raise ValueError(f"predict returned {len(result)} rows for {count} requests")
        if isinstance(result, np.ndarray) and result.dtype.kind != "O":
            return result
        return [self.failure(row) if isinstance(row, Exception) else row for row in result]

    def failure(self, error: BaseException) -> InferenceError:
        """What a request is told of an exception of the model's; of several that came together, of the first."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, InferenceError):
            return error
        if isinstance(error, InvalidRequest):
            return InferenceError(_said(error))
        log.error("%s failed", self.name, exc_info=error)
        if isinstance(error, SystemExit):
            return InferenceError(f"{self.name} failed: it called sys.exit({error.code!r})", Code.INTERNAL)
        return InferenceError(f"{self.name} failed: {type(error).__name__}: {_said(error)}", Code.INTERNAL)

    # --- what it is ---------------------------------------------------------------------------------------------------

    def _predict_of(self, target: Any) -> Callable[..., Any]:
        if not inspect.isclass(target):
            if not inspect.isfunction(target):
                raise ConfigError(f"{self._what} is {_kind(target)}, no function and no class with `predict`")
            return target
        predict = inspect.getattr_static(target, "predict", None)
        if not inspect.isfunction(predict):
            raise ConfigError(f"the class {self._what} has no method `predict`, which is what answers requests")
        needed = [
            each.name
            for each in list(inspect.signature(target.__init__).parameters.values())[1:]
            if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
        if needed:
            raise ConfigError(f"{self._what} is made without arguments, and needs {', '.join(needed)}: give defaults")
        return predict

    def _hints(self, predict: Callable[..., Any]) -> dict[str, Any]:
        try:
            return typing.get_type_hints(predict, include_extras=True)
        except Exception as error:
            raise ConfigError(f"the annotations of {self._what} cannot be read: {error}") from None

    def _parameters(self, predict: Callable[..., Any], hints: Mapping[str, Any]) -> list[Parameter]:
        given = list(inspect.signature(predict).parameters.values())
        if inspect.isclass(self._target):
            given = given[1:]
        found = []
        for each in given:
            if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                raise ConfigError(f"{self._what} has a parameter {each}: requests have names, each for one value")
            annotation = hints.get(each.name, Any)
            if annotation is Model or Model in typing.get_args(annotation):
                self.models[each.name] = self._model(each)
                continue
            if self.options.max_batch_size:
                kind, stacked = self._over_requests(annotation, f"the parameter {each.name!r}")
            else:
                kind, stacked = annotation, False
            found.append(Parameter(each.name, kind, stacked, each.default))
        if not found:
            raise ConfigError(f"{self._what} takes nothing: give `predict` a parameter for what requests have")
        return found

    def _model(self, given: inspect.Parameter) -> Model:
        """A model that a parameter names, by its default or else by itself."""
        if not self.is_ensemble:
            raise ConfigError(
                f"{self._what} has a model as its parameter {given.name!r}: only @octavo.ensemble asks any"
            )
        if given.default is given.empty:
            return Model(given.name)
        if not isinstance(given.default, Model):
            raise ConfigError(
                f"the parameter {given.name!r} of {self._what} is a model: give it no default, or octavo.Model(NAME)"
            )
        return given.default

    def _over_requests(self, annotation: Any, what: str) -> tuple[Any, bool]:
        """The type of one request's value, from that of several, and whether these are an array."""
        plain = _plain(annotation)
        if plain is Any or plain in (list, tuple):
            return Any, False
        if _is_array(plain):
            return annotation, True
        arguments = typing.get_args(plain)
        if typing.get_origin(plain) in _LISTS and len(arguments) == 1:
            return arguments[0], False
        shown = inspect.formatannotation(annotation)
        raise ConfigError(
            f"with max_batch_size {what} of {self._what} is a list over requests: annotate it list[{shown}], or as an "
            f"array, not {shown}"
        )

    def _result(self, annotation: Any) -> Any:
        """The type of one request's result, or of the pieces of it."""
        if self.options.max_batch_size:
            return self._over_requests(annotation, "the result")[0]
        if self.streams and typing.get_origin(_plain(annotation)) in (*_STREAMS, *_ASYNC_STREAMS):
            return typing.get_args(_plain(annotation))[0]
        return Any if self.streams else annotation


def _said(error: BaseException) -> str:
    try:
        return f"{error!s:.2000}"
    except Exception:  # an error of somebody's own may fail to say what it is
        return "(it cannot say more)"


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _stacked(values: Sequence[Any]) -> NDArray[Any] | None:
    """The arrays of several requests as one, which code may change; that of one request is not copied for it. None if
    none of them has one."""
    if all(value is None for value in values):
        return None
    if len(values) == 1 and isinstance(values[0], np.ndarray) and values[0].flags.writeable:
        return values[0][np.newaxis]
    return np.stack(values)


def _plain(annotation: Any) -> Any:
    """An annotation without what `Annotated` adds to it."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _is_array(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, np.ndarray)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"
