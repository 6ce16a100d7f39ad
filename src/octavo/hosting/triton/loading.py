"""From a model of a repository to one that computes, in the process that serves it."""

from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo.hosting import runtimes
from octavo.hosting.config import HostingConfig, RepositoryModel
from octavo.hosting.info import HostedInfo
from octavo.hosting.loaded import Loaded
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtime_computation import RuntimeComputation
from octavo.hosting.sequence_computation import SequenceComputation
from octavo.hosting.start import HostingStart
from octavo.hosting.triton.agreement import check_agreement, complete, names_in_model
from octavo.hosting.triton.backends import PYTHON, backend_named
from octavo.hosting.triton.configured_runtime import ConfiguredRuntime, input_specs, output_specs
from octavo.hosting.triton.description import Description
from octavo.hosting.triton.normal_form import normal_form
from octavo.hosting.triton.placement import gpus_here, placed_instances, shares_of
from octavo.hosting.triton.resizing import resizer
from octavo.hosting.triton.sequence_batching import SequenceBatching, sequence_batching_of, with_sequence_tensors
from octavo.hosting.triton.warmup import warm_up


def load_from_repository(start: HostingStart, model: RepositoryModel) -> Loaded:
    """Load a version of a model. Raises ConfigError: it cannot be loaded, or does not agree with its configuration."""
    config: dict[str, Any] = msgspec.json.decode(model.config)
    if config["backend"] == PYTHON:
        from octavo.hosting.triton.python_backend.loading import load_python_model

        return load_python_model(start, model, config)
    return _load_file(start, model, config)


def _load_file(start: HostingStart, model: RepositoryModel, config: dict[str, Any]) -> Loaded:
    backend = backend_named(config["backend"])
    described = Description.of(config)
    gpus = gpus_here()
    placed = placed_instances(described, gpus=gpus)
    options = _options(described, placed[start.place].device, start.config)
    runtime = runtimes.load(backend.runtime, Path(start.config.model), options)
    if model.completes:
        complete(config, runtime, model.batch_size)
        described = Description.of(config)
    sequences = sequence_batching_of(config)
    whole = with_sequence_tensors(described, sequences)
    names = names_in_model(whole, runtime)
    check_agreement(whole, runtime, names)
    configured = ConfiguredRuntime(runtime, whole, names, Path(model.folder))
    inner = RuntimeComputation(configured, start.name, batched=configured.batches, merges=described.merges)
    computation = inner if sequences is None else _of_sequences(inner, described, sequences, model)
    warm_up(computation, described, Path(model.folder), streams=False)
    shares = shares_of(placed, concurrent=runtime.concurrent)
    own = shares[start.number - 1].instances
    batching = described.batching()
    info = HostedInfo(
        name=start.name,
        runtime=backend.runtime,
        platform=described.platform or backend.name,
        inputs=input_specs(described),
        outputs=output_specs(described, Path(model.folder)),
        batching=batching if configured.batches else None,
        queue=batching,
        sequencing=None if sequences is None else sequences.sequencing(described.max_batch_size),
        response_cache=described.response_cache.enable,
        details=sequences is not None,
        instances=len(placed),
        at_once=len(placed),
        processes=len(shares),
        concurrent=runtime.concurrent,
        numbers=start.numbers,
        earlier=start.earlier,
        execution_timeout=start.config.execution_timeout,
        config=normal_form(config, gpus=gpus),
    )
    return Loaded(
        computation=computation,
        info=info,
        at_once=len(own),
        limits=own,
        all_limits=tuple(each.limits for each in placed),
        resize=resizer(info, config),
    )


def _of_sequences(
    inner: RuntimeComputation, described: Description, sequences: SequenceBatching, model: RepositoryModel
) -> SequenceComputation:
    batched = described.max_batch_size > 0
    return SequenceComputation(
        inner,
        sequences.inputs(described.max_batch_size),
        [each.state(Path(model.folder), batched=batched) for each in sequences.state],
        [each.name for each in described.output],
    )


def _options(described: Description, device: str, config: HostingConfig) -> RuntimeOptions:
    """What a runtime is told. Raises ConfigError: a parameter is none."""
    if any(each.name == "tensorrt" for each in described.optimization.execution_accelerators.gpu_execution_accelerator):
        device = device.replace("cuda", "tensorrt") if device.startswith("cuda") else device
    threads = described.parameters.get("intra_op_thread_count") or described.parameters.get("INTRA_OP_THREAD_COUNT")
    if threads is None:
        return RuntimeOptions(threads=config.runtime_threads, device=device)
    written = threads.string_value
    if not written.isdecimal():
        raise ConfigError(
            f"parameters: intra_op_thread_count is '{written:.100}'; give a number, 0 for the runtime's own"
        )
    return RuntimeOptions(threads=int(written) or None, device=device)
