"""From settings to an engine that computes: checkpoint, graph, memory, weights, in that order."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo.backends.protocol import Executor
from octavo.engine.config import EngineConfig, ModelInfo, size_kv_cache
from octavo.engine.engine import Engine
from octavo.errors import ConfigError
from octavo.graph.cost import kv_bytes_per_token
from octavo.graph.ops import Graph
from octavo.models import Model, build
from octavo.weights.checkpoint import Checkpoint, open_checkpoint

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

KV_ITEMSIZE = {"cpu": 2, "reference": 4}
"""Bytes of an element of the KV cache, by backend."""


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine, what it came to on this machine, and what benchmarks hold it against.

    Attributes:
        graph: what it computes.
        weight_bytes: of every weight as it is streamed; None is float32.
    """

    engine: Engine
    info: ModelInfo
    graph: Graph
    weight_bytes: Mapping[str, int] | None


def load_engine(config: EngineConfig, progress: Progress | None = None) -> LoadedEngine:
    """Load a model. Everything that can be refused is refused before the weights are read.

    Args:
        progress: called with (weights loaded, weights in all) while loading.

    Raises:
        OctavoError: unreadable checkpoint, unsupported model, or settings that cannot work.
    """
    config.validate()
    backend = choose_backend(config.backend)
    checkpoint = open_checkpoint(Path(config.model))
    model = build(checkpoint.config)
    stored = _stored_bytes(model.graph, checkpoint) if backend == "cpu" else None
    shapes = model.graph.parameters()
    weight_bytes = sum(stored.values()) if stored else sum(4 * _elements(shape) for shape in shapes.values())
    page_bytes = kv_bytes_per_token(model.graph, KV_ITEMSIZE[backend]) * config.page_size
    num_pages, max_model_len = size_kv_cache(
        config,
        weight_bytes=weight_bytes,
        page_bytes=page_bytes,
        model_max_len=model.max_position_embeddings,
    )
    executor = _executor(backend, config, model, checkpoint, num_pages, max_model_len, progress)
    info = ModelInfo(
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        num_pages=num_pages,
        page_size=config.page_size,
        max_num_seqs=config.max_num_seqs,
        backend=backend,
        weight_bytes=weight_bytes,
        kv_cache_bytes=num_pages * page_bytes,
    )
    return LoadedEngine(Engine(executor, config, max_model_len), info, model.graph, stored)


def choose_backend(wanted: str) -> str:
    """The backend that "auto" stands for, or the one named.

    Raises:
        ConfigError: the native kernels were asked for and are not built.
    """
    if wanted == "reference":
        return wanted
    if importlib.util.find_spec("octavo.backends.cpu._native") is not None:
        return "cpu"
    if wanted == "cpu":
        raise ConfigError("the native kernels are not built; install Octavo again with a C++20 compiler, or use auto")
    log.warning(
        "the native kernels are not built (no C++ compiler at installation): computing with numpy, which is slow"
    )
    return "reference"


def _executor(
    backend: str,
    config: EngineConfig,
    model: Model,
    checkpoint: Checkpoint,
    num_pages: int,
    max_model_len: int,
    progress: Progress | None,
) -> Executor:
    if backend == "cpu":
        from octavo.backends.cpu.executor import CpuExecutor

        return CpuExecutor(
            model.graph,
            checkpoint.tensors,
            vocab_size=model.vocab_size,
            num_pages=num_pages,
            page_size=config.page_size,
            max_positions=max_model_len,
            threads=config.threads,
            progress=progress,
        )
    from octavo.backends.reference.executor import ReferenceExecutor

    return ReferenceExecutor(
        model.graph,
        checkpoint.tensors,
        vocab_size=model.vocab_size,
        num_pages=num_pages,
        page_size=config.page_size,
        threads=config.threads,
        progress=progress,
    )


def _stored_bytes(graph: Graph, checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of every weight in the checkpoint; what is missing there is reported when the weights are loaded."""
    names = [name for name in graph.parameters() if name in checkpoint.tensors]
    return {name: checkpoint.tensors[name].nbytes for name in names}


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
