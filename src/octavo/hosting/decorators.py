"""`@octavo.model` and `@octavo.ensemble`: what makes a model of somebody's own code."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, overload

from octavo.hosting.options import OPTIONS, EnsembleOptions, ModelOptions
from octavo.hosting.own import OwnModel
from octavo.settings import require_known

T = TypeVar("T", bound=Callable[..., Any])


@overload
def model(target: T, /) -> T: ...
@overload
def model(
    *,
    name: str = "",
    max_batch_size: int = 0,
    instances: int = 1,
    max_queue_delay: float | None = None,
    response_cache: bool = False,
) -> Callable[[T], T]: ...
def model(target: T | None = None, /, **options: Any) -> T | Callable[[T], T]:
    """Make a model of a function, or of a class with `predict`, and `load` for what it must do before.

        @model(max_batch_size=32)
        class Sentiment:
            def load(self):
                self.classify = pipeline("text-classification")

            def predict(self, text: list[str]) -> list[str]:
                return [each["label"] for each in self.classify(text)]

    With `max_batch_size` the parameters and the result are lists over requests, or arrays with a first dimension over
    them; an exception in the place of a result is that request's alone. Without it they are one request's, and
    a generator streams. To raise `octavo.InvalidRequest` says that the request is to blame.

    Args:
        options: see `ModelOptions`.

    Raises:
        ConfigError: a class or function that cannot be a model.
    """
    require_known(options, (field.name for field in dataclasses.fields(ModelOptions)), "@octavo.model's argument ")
    return _decorated(target, ModelOptions(**options))


@overload
def ensemble(target: T, /) -> T: ...
@overload
def ensemble(*, name: str = "", max_inflight_requests: int = 256) -> Callable[[T], T]: ...
def ensemble(target: T | None = None, /, **options: Any) -> T | Callable[[T], T]:
    """Make an ensemble of an asynchronous function, or of a class whose `predict` is one: a function of models.

        @ensemble
        async def answer(question: str, *, sentiment: Model, llm: Model = Model("smollm2:135m")) -> Answer:
            mood, reply = await asyncio.gather(sentiment(text=question), llm(text_input=question))
            return Answer(mood=mood["label"], text=reply["text_output"])

    Each parameter that is a `Model` is a model of the same server, whatever kind that is: the one of its name, or that
    which its default names. The others are what a request has, as `@octavo.model` without `max_batch_size` has them,
    and a generator streams. When the client leaves, all that is being computed for it ends.

    Args:
        options: `name` that requests use; `max_inflight_requests`, 256 without it, that are computed beside each other.

    Raises:
        ConfigError: a class or function that cannot be an ensemble.
    """
    require_known(options, ("name", "max_inflight_requests"), "@octavo.ensemble's argument ")
    return _decorated(target, EnsembleOptions(**options))


def _decorated(target: T | None, options: ModelOptions) -> T | Callable[[T], T]:
    options.validate()

    def decorate(decorated: T) -> T:
        OwnModel(decorated, options)
        setattr(decorated, OPTIONS, options)
        return decorated

    return decorate if target is None else decorate(target)
