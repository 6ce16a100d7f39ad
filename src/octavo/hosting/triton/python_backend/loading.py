"""From a Python model of a repository to one that computes."""

import json
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo.hosting.config import RepositoryModel
from octavo.hosting.info import DECOUPLED_IS_NOT_CACHED, HostedInfo
from octavo.hosting.loaded import Loaded
from octavo.hosting.rate_limits import Limits
from octavo.hosting.start import HostingStart
from octavo.hosting.triton.configured_runtime import input_specs, output_specs
from octavo.hosting.triton.description import Description, Group
from octavo.hosting.triton.normal_form import normal_form
from octavo.hosting.triton.placement import gpus_here, limits_on, resolved_groups
from octavo.hosting.triton.python_backend.computation import PythonComputation
from octavo.hosting.triton.python_backend.model import PythonModel
from octavo.hosting.triton.python_backend.server import MOST_OPEN, PythonServer, slots_of
from octavo.hosting.triton.resizing import resizer
from octavo.hosting.triton.sequence_batching import sequence_batching_of
from octavo.hosting.triton.warmup import warm_up

RUNTIME = "python"

_KINDS = {"KIND_CPU": "CPU", "KIND_GPU": "GPU", "KIND_MODEL": "MODEL"}

_UNKNOWN_TYPE = "TYPE_INVALID"


def load_python_model(start: HostingStart, source: RepositoryModel, config: dict[str, Any]) -> Loaded:
    """Load a model's code. Raises ConfigError: it fails, or its configuration does not say what it takes and gives."""
    gpus = gpus_here()
    model = PythonModel(Path(start.config.model))
    if source.completes:
        config = model.complete(normal_form(config, gpus=gpus))
    _check_tensors(config)
    description = Description.of(config)
    config = normal_form(config, gpus=gpus)
    groups = instances_of(description, gpus)
    name, kind, device, limits = groups[start.place]
    decoupled = model.decoupled = description.model_transaction_policy.decoupled
    if decoupled and description.response_cache.enable:
        raise ConfigError(DECOUPLED_IS_NOT_CACHED.format(description.name))
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_instance_kind": kind,
            "model_instance_name": name,
            "model_instance_device_id": str(device),
            "model_repository": source.folder,
            "model_version": source.version,
            "model_name": description.name,
        }
    )
    sequences = sequence_batching_of(config)
    if sequences is not None and sequences.state:
        raise ConfigError("sequence_batching.state is not supported: a Python model keeps the states of its sequences")
    controls = None if sequences is None else sequences.inputs(description.max_batch_size)
    computation = PythonComputation(model, description, name, controls)
    warm_up(computation, description, Path(source.folder), streams=False)
    batching = description.batching()
    info = HostedInfo(
        name=start.name,
        runtime=RUNTIME,
        platform=description.platform or RUNTIME,
        inputs=input_specs(description),
        outputs=output_specs(description, Path(source.folder)),
        batching=batching if description.max_batch_size else None,
        queue=batching,
        sequencing=None if sequences is None else sequences.sequencing(description.max_batch_size),
        instances=len(groups),
        at_once=len(groups) * (MOST_OPEN if decoupled else 1),
        processes=len(groups),
        numbers=start.numbers,
        earlier=start.earlier,
        execution_timeout=start.config.execution_timeout,
        streams=decoupled,
        probes=model.checks_readiness,
        response_cache=description.response_cache.enable,
        details=True,
        config=config,
    )
    return Loaded(
        computation=computation,
        info=info,
        at_once=slots_of(info),
        serve=lambda endpoint, running, permits: PythonServer(computation, info, endpoint, running, permits),
        limits=(limits,),
        all_limits=tuple(each for _, _, _, each in groups),
        finalize=model.finalize,
        resize=resizer(info, config),
    )


def instances_of(description: Description, gpus: int) -> list[tuple[str, str, int, Limits]]:
    """What Triton calls each instance, its kind, the number of its device, and what it needs to compute."""
    return [
        (f"{group['name']}_{number}", _KINDS[group["kind"]], device, limits_on(msgspec.convert(group, Group), device))
        for group in resolved_groups(description, gpus)
        if not group["passive"]
        for number in range(group["count"])
        for device in group["gpus"] or (0,)
    ]


def _check_tensors(config: dict[str, Any]) -> None:
    """Raises ConfigError: neither the configuration nor the model says what it takes and gives."""
    for kind in ("input", "output"):
        for each in config.get(kind, ()):
            about = f"model {kind} '{each.get('name', '')}' of model '{config['name']}'"
            if not each.get("name"):
                raise ConfigError(f"model {kind} must specify 'name'")
            if each.get("data_type", _UNKNOWN_TYPE) == _UNKNOWN_TYPE:
                raise ConfigError(f"{about} must specify 'data_type'")
            if not each.get("dims"):
                raise ConfigError(f"{about} must specify 'dims'")
