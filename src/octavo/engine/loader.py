"""From settings to an engine that computes: checkpoint, graph, memory, weights, in that order."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from octavo.backends.reference.executor import ReferenceExecutor
from octavo.engine.config import EngineConfig, ModelInfo, size_kv_cache
from octavo.engine.engine import Engine
from octavo.graph.cost import kv_bytes_per_token
from octavo.graph.ops import Graph
from octavo.models import build
from octavo.weights.checkpoint import open_checkpoint


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine, what it came to on this machine, and the graph it computes."""

    engine: Engine
    info: ModelInfo
    graph: Graph


def load_engine(config: EngineConfig, progress: Callable[[int, int], None] | None = None) -> LoadedEngine:
    """Load a model. Everything that can be refused is refused before the weights are read.

    Args:
        progress: called with (weights loaded, weights in all) while loading.

    Raises:
        OctavoError: unreadable checkpoint, unsupported model, or settings that cannot work.
    """
    config.validate()
    checkpoint = open_checkpoint(Path(config.model))
    model = build(checkpoint.config)
    weight_bytes = 4 * sum(prod(shape) for shape in model.graph.parameters().values())
    page_bytes = kv_bytes_per_token(model.graph, 4) * config.page_size
    num_pages, max_model_len = size_kv_cache(
        config,
        weight_bytes=weight_bytes,
        page_bytes=page_bytes,
        model_max_len=model.max_position_embeddings,
    )
    executor = ReferenceExecutor(
        model.graph,
        checkpoint.tensors,
        vocab_size=model.vocab_size,
        num_pages=num_pages,
        page_size=config.page_size,
        progress=progress,
    )
    info = ModelInfo(
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        num_pages=num_pages,
        page_size=config.page_size,
        max_num_seqs=config.max_num_seqs,
        backend="reference",
        weight_bytes=weight_bytes,
        kv_cache_bytes=num_pages * page_bytes,
    )
    return LoadedEngine(Engine(executor, config, max_model_len), info, model.graph)
