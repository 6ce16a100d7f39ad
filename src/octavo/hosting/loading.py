"""From a hosted model's settings to one that computes."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.hosting.async_server import MAX_AT_ONCE
from octavo.hosting.code_names import names_code
from octavo.hosting.computation import Computation
from octavo.hosting.config import DEFAULT_BATCH_SIZE
from octavo.hosting.info import HostedInfo
from octavo.hosting.own import OwnModel
from octavo.hosting.own_code import find_code, refusal, sources_of
from octavo.hosting.own_computation import OwnComputation, check_names
from octavo.hosting.runtime_computation import RuntimeComputation
from octavo.hosting.start import HostingStart

PYTHON = "python"
"""The runtime of somebody's own code."""


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


def load_model(start: HostingStart) -> Loaded:
    """Load a model. Raises ConfigError: it cannot be loaded; the message says why in one line."""
    own = start.config.runtime == PYTHON or (start.config.runtime is None and names_code(start.config.model))
    loaded = _load_own(start) if own else _load_file(start)
    check_names(loaded.info.signature)
    return loaded


def _load_own(start: HostingStart) -> Loaded:
    target = find_code(start.config.model, start.config.search_path)
    imported = sources_of(target)
    own = OwnModel(target)
    config = start.config.with_options(own.options)
    if bool(config.max_batch_size) is not bool(own.options.max_batch_size):
        takes = "lists over requests" if own.options.max_batch_size else "one request"
        raise ConfigError(f"max_batch_size is {config.max_batch_size}, but {start.config.model} takes {takes}")
    try:
        computation = OwnComputation(own, start.name)
        if not own.asynchronous:
            own.load()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise refusal(f"{start.config.model} cannot be loaded", error) from error
    instances = config.instances or 1
    bodies = computation.bodies
    info = HostedInfo(
        name=start.name,
        runtime=PYTHON,
        platform=PYTHON,
        inputs=computation.inputs,
        outputs=computation.outputs,
        batching=config.batching(config.max_batch_size) if config.max_batch_size else None,
        queue=config.batching(config.max_batch_size or 1),
        instances=instances,
        at_once=MAX_AT_ONCE if own.asynchronous and not config.max_batch_size else instances,
        processes=1 if own.asynchronous else instances,
        execution_timeout=config.execution_timeout,
        streams=own.streams,
        body=bodies.schema,
        result=bodies.result,
        definitions=bodies.definitions,
        files=bodies.files,
        sources={**sources_of(target), **imported},  # what was written again meanwhile is not what was loaded
        description=inspect.getdoc(target) or "",
        text=computation.text,
    )
    if not own.asynchronous:
        return Loaded(computation=computation, info=info, at_once=1)

    async def load() -> None:
        try:
            await own.aload()
        except (Exception, SystemExit) as error:
            raise refusal(f"{start.config.model} cannot be loaded", error) from error

    return Loaded(computation=computation, info=info, at_once=info.at_once, load=load)


def _load_file(start: HostingStart) -> Loaded:
    from octavo.hosting import runtimes

    config = start.config
    path = Path(config.model)
    name = config.runtime or ("transformers" if config.task else runtimes.runtime_of(path))
    if name is None:
        raise ConfigError(f"{path.name} is no model that Octavo knows; --runtime names what computes it")
    runtime = runtimes.load(name, path, config.runtime_options)
    if config.max_batch_size and runtime.batches is False:
        raise ConfigError(
            f"{path.name} cannot be computed in batches: the first dimension of an input or output is fixed; leave "
            "max_batch_size out"
        )
    # A model that does not say is batched if whoever serves it does.
    batched = bool(config.max_batch_size) if runtime.batches is None else runtime.batches and config.max_batch_size != 0
    instances = config.instances or 1
    size = config.max_batch_size or DEFAULT_BATCH_SIZE
    info = HostedInfo(
        name=start.name,
        runtime=name,
        platform=runtime.platform,
        inputs=runtime.inputs,
        outputs=runtime.outputs,
        batching=config.batching(size) if batched else None,
        queue=config.batching(size if batched else 1),
        instances=instances,
        at_once=instances,
        processes=1 if runtime.concurrent else instances,
        execution_timeout=config.execution_timeout,
    )
    return Loaded(
        computation=RuntimeComputation(runtime, start.name, batched=batched),
        info=info,
        at_once=instances if runtime.concurrent else 1,
    )
