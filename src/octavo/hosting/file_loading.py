"""From a model's file to one that computes."""

from pathlib import Path

from octavo.errors import ConfigError
from octavo.hosting import runtimes
from octavo.hosting.config import DEFAULT_BATCH_SIZE
from octavo.hosting.info import HostedInfo
from octavo.hosting.loaded import Loaded
from octavo.hosting.runtime_computation import RuntimeComputation
from octavo.hosting.start import HostingStart


def load_file(start: HostingStart) -> Loaded:
    """Load a model that a runtime computes. Raises ConfigError: it cannot be loaded."""
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
        response_cache=bool(config.response_cache),
        execution_timeout=config.execution_timeout,
    )
    return Loaded(
        computation=RuntimeComputation(runtime, start.name, batched=batched),
        info=info,
        at_once=instances if runtime.concurrent else 1,
    )
