"""From somebody's own code to a model that computes."""

import inspect

from octavo.errors import ConfigError
from octavo.hosting.config import PYTHON
from octavo.hosting.info import HostedInfo
from octavo.hosting.loaded import Loaded
from octavo.hosting.options import MAX_AT_ONCE, EnsembleOptions
from octavo.hosting.own import OwnModel
from octavo.hosting.own_code import find_code, refusal, sources_of
from octavo.hosting.own_computation import OwnComputation
from octavo.hosting.start import HostingStart


def load_own(start: HostingStart) -> Loaded:
    """Load a model of somebody's own. Raises ConfigError: it cannot be loaded."""
    target = find_code(start.config.model, start.config.search_path)
    imported = sources_of(target)
    own = OwnModel(target)
    config = start.config.with_options(own.options)
    if bool(config.max_batch_size) is not bool(own.options.max_batch_size):
        takes = "lists over requests" if own.options.max_batch_size else "one request"
        raise ConfigError(f"max_batch_size is {config.max_batch_size}, but {start.config.model} takes {takes}")
    if config.response_cache and own.streams:
        raise ConfigError(f"response_cache is for models with one result, and {start.config.model} streams")
    if config.response_cache and own.is_ensemble:
        raise ConfigError(
            f"response_cache is not for {start.config.model}: an ensemble's answers change with its models, which may "
            "have it"
        )
    try:
        computation = OwnComputation(own, start.name)
        if not own.asynchronous:
            own.load()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise refusal(f"{start.config.model} cannot be loaded", error) from error
    instances = config.instances or 1
    at_once = own.options.max_inflight_requests if isinstance(own.options, EnsembleOptions) else MAX_AT_ONCE
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
        at_once=at_once if own.asynchronous and not config.max_batch_size else instances,
        processes=1 if own.asynchronous else instances,
        execution_timeout=config.execution_timeout,
        streams=own.streams,
        response_cache=bool(config.response_cache),
        details=own.is_ensemble,
        asks=tuple((each.name, each.version) for each in own.models.values()) if own.is_ensemble else None,
        unnamed=computation.unnamed,
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
