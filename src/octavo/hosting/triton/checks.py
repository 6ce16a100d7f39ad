"""Whether a configuration can work, and what of it Octavo does not do: by the field's name, before anything starts."""

import re
from collections.abc import Iterator
from math import prod

from octavo.errors import ConfigError
from octavo.hosting.batching import MAX_PRIORITY_LEVELS
from octavo.hosting.config import ENSEMBLE
from octavo.hosting.ensemble import check_flow
from octavo.hosting.info import DECOUPLED_IS_NOT_CACHED
from octavo.hosting.options import MAX_INSTANCES
from octavo.hosting.triton import Config
from octavo.hosting.triton.ensembles import ensemble_of
from octavo.hosting.triton.model_config import config_to_json
from octavo.hosting.triton.sequence_checks import sequence_troubles

ANY = -1
TENSORRT = "tensorrt"

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def check_config(config: Config) -> None:
    """Check a configuration whose backend is known. Raises ConfigError: it cannot work."""
    for trouble in troubles(config):
        raise ConfigError(trouble)


def troubles(config: Config) -> Iterator[str]:
    """All that is wrong with a configuration, and all that it asks for that Octavo does not do."""
    if config.max_batch_size < 0:
        yield f"'max_batch_size' must be non-negative value for {config.name}"
    yield from _unsupported(config)
    for each in config.input:
        yield from _input_troubles(each, config)
    for each in config.output:
        yield from _output_troubles(each, config)
    yield from _repeated(config)
    if config.platform == ENSEMBLE:
        yield from _ensemble_troubles(config)
    for group in config.instance_group:
        yield from _instance_troubles(group, config)
    if config.instance_group and all(group.passive for group in config.instance_group):
        yield "instance_group: all of them are passive, so that no request could be computed"
    match config.WhichOneof("scheduling_choice"):
        case "dynamic_batching":
            yield from _batching_troubles(config)
        case "sequence_batching":
            yield from sequence_troubles(config)
    if config.model_transaction_policy.decoupled and config.response_cache.enable:
        yield DECOUPLED_IS_NOT_CACHED.format(config.name)
    if config.WhichOneof("scheduling_choice") == "sequence_batching" and config.response_cache.enable:
        yield (
            f"Response Cache does not currently support model {config.name} with sequence batching scheduler. "
            "Please disable the response cache."
        )
    for warmup in config.model_warmup:
        yield from _warmup_troubles(warmup, config)


def _unsupported(config: Config) -> Iterator[str]:
    """What Octavo does not do. What only says how Triton copies memory changes no answer, and is taken as read."""
    if config.runtime and config.runtime != f"libtriton_{config.backend}.so":
        yield f"runtime is '{config.runtime:.100}', which is not supported: {config.backend} has one runtime"
    if config.cc_model_filenames:
        yield "cc_model_filenames is not supported: default_model_filename names the one file of a version"
    if config.batch_input:
        yield "batch_input is not supported"
    if config.batch_output:
        yield "batch_output is not supported"
    if config.model_operations.op_library_filename:
        yield "model_operations.op_library_filename is not supported: there are no operations of your own"
    if config.model_repository_agents.agents:
        yield "model_repository_agents is not supported"
    if config.model_metrics.metric_control:
        yield "model_metrics is not supported: histograms have the buckets that they have"
    for tag in config.metric_tags:
        if not _LABEL.fullmatch(tag):
            yield f"metric_tags: '{tag:.100}' is no label; give letters, digits and _, no digit in front"
    optimization = config.optimization
    for kind in ("gpu", "cpu"):
        for accelerator in getattr(optimization.execution_accelerators, f"{kind}_execution_accelerator"):
            if (kind, accelerator.name, config.backend) != ("gpu", TENSORRT, "onnxruntime"):
                yield (
                    f"optimization.execution_accelerators.{kind}_execution_accelerator is '{accelerator.name}', which "
                    f"is not supported for {config.backend or config.platform}"
                )


# --- tensors ----------------------------------------------------------------------------------------------------------


def _input_troubles(each: Config, config: Config) -> Iterator[str]:
    yield from _tensor_troubles(each, "model input ", config)
    if each.format and len(each.dims) != 3:
        yield f"model input NHWC/NCHW require 3 dims, and '{each.name}' has {len(each.dims)}"
    if each.allow_ragged_batch and config.backend not in ("", "python", "onnxruntime"):
        yield f"input '{each.name}': allow_ragged_batch is not supported for {config.backend}"


def _output_troubles(each: Config, config: Config) -> Iterator[str]:
    yield from _tensor_troubles(each, "model output ", config)


def _tensor_troubles(each: Config, kind: str, config: Config) -> Iterator[str]:
    if not each.name:
        yield f"{kind}must specify 'name'"
        return
    about = f"{kind}'{each.name}' "
    if not each.data_type:
        yield f"{about}must specify 'data_type'"
    if not each.dims:
        yield f"{about}must specify 'dims'"
    if any(size < 1 and size != ANY for size in each.dims):
        yield f"{about}dimension must be integer >= 1, or {ANY} to indicate a variable-size dimension"
    if each.HasField("reshape"):
        yield from _reshape_troubles(each, about, config)
    if each.is_shape_tensor:
        yield f"{about}is_shape_tensor is not supported"
    if each.is_non_linear_format_io:
        yield f"{about}is_non_linear_format_io is not supported"


def _reshape_troubles(each: Config, about: str, config: Config) -> Iterator[str]:
    shape = list(each.reshape.shape)
    if not shape and not config.max_batch_size:
        yield f"{about}cannot have empty reshape for non-batching model as scalar tensors are not supported"
    if any(size < 1 and size != ANY for size in shape):
        yield f"{about}reshape dimensions must be integer >= 1, or {ANY} to indicate a variable-size dimension"
        return
    given, wanted = _between_free(each.dims), _between_free(shape)
    if len(given) != len(wanted):
        yield f"{about}has different number of variable-size dimensions for dims and reshape"
    elif given != wanted:
        yield f"{about}has different size for dims and reshape"


def _between_free(dims: "list[int]") -> list[int]:
    """How many elements the dimensions between those of any size have: [2, 4, -1, 6] has 8 and 6."""
    parts: list[list[int]] = [[]]
    for size in dims:
        if size == ANY:
            parts.append([])
        else:
            parts[-1].append(size)
    return [prod(part) for part in parts]


def _repeated(config: Config) -> Iterator[str]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        names = [each.name for each in tensors]
        for name in sorted({name for name in names if name and names.count(name) > 1}):
            yield f"{kind} '{name}' is there twice"


# --- how it is served -------------------------------------------------------------------------------------------------


def _ensemble_troubles(config: Config) -> Iterator[str]:
    for field, is_there in (
        ("instance group", bool(config.instance_group)),
        ("optimization", config.HasField("optimization")),
        ("model_warmup", bool(config.model_warmup)),
    ):
        if is_there:
            yield f"{field} should not be specified for ensemble '{config.name}'"
    try:
        check_flow(ensemble_of(config_to_json(config), config.name))
    except ConfigError as error:
        yield str(error)


def _instance_troubles(group: Config, config: Config) -> Iterator[str]:
    kind = group.DESCRIPTOR.enum_types_by_name["Kind"].values_by_number[group.kind].name
    about = f"instance group {group.name or f'{config.name}_0'} of model {config.name}"
    if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
        yield f"{about} has kind {kind} but specifies one or more GPUs"
    if group.count < 0 or group.count > MAX_INSTANCES:
        yield f"{about}: count is {group.count}; give 1 to {MAX_INSTANCES}"
    if group.profile:
        yield f"{about}: profile is not supported"
    if group.secondary_devices:
        yield f"{about}: secondary_devices is not supported"
    if group.host_policy:
        yield f"{about}: host_policy is not supported"


def _batching_troubles(config: Config) -> Iterator[str]:
    batching, name = config.dynamic_batching, config.name
    for size in batching.preferred_batch_size:
        if size <= 0:
            yield f"dynamic batching preferred size must be positive for {name}"
        elif size > config.max_batch_size:
            yield f"dynamic batching preferred size must be <= max batch size for {name}"
    levels = batching.priority_levels
    if levels > MAX_PRIORITY_LEVELS:
        yield f"dynamic_batching.priority_levels is {levels}; give 0 to {MAX_PRIORITY_LEVELS}"
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            yield f"default priority level must be in range [1, {levels}] for {name}"
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                yield f"priority queue policy must have priority level in range [1, {levels}] for {name}"
    if batching.preserve_ordering:
        if levels > 1:
            yield f"Only one priority level is allowed when 'preserve_ordering' is true for {name}"
        for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
            if policy.default_timeout_microseconds and policy.timeout_action:
                yield f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {name}"


def _warmup_troubles(warmup: Config, config: Config) -> Iterator[str]:
    about = f"model_warmup '{warmup.name}'"
    if warmup.batch_size > config.max_batch_size and config.max_batch_size:
        yield f"{about}: batch_size is {warmup.batch_size}, more than max_batch_size, {config.max_batch_size}"
    for name, each in warmup.inputs.items():
        if each.WhichOneof("input_data_type") is None:
            yield f"{about}: input '{name}' must specify zero_data, random_data or input_data_file"
        if not each.data_type:
            yield f"{about}: input '{name}' must specify 'data_type'"
        if any(size < 1 for size in each.dims):
            yield f"{about}: input '{name}' must have dims of 1 or more, and has {list(each.dims)}"
