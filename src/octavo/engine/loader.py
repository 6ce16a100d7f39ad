"""From settings to an engine that computes: checkpoint, graph, memory, weights, in that order."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

from octavo.backends.common.cores import physical_cores
from octavo.backends.protocol import Executor
from octavo.engine.config import KV_ITEMSIZE, EngineConfig, ModelInfo, size_kv_cache
from octavo.engine.engine import Engine
from octavo.errors import CheckpointError, ConfigError
from octavo.graph.cost import kv_bytes_per_token
from octavo.graph.ops import Graph
from octavo.models import Model, build
from octavo.weights.checkpoint import Checkpoint, open_checkpoint

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_NAMED = 4
"""Weights that a note names, of perhaps hundreds."""


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine, what it came to on this machine, and what benchmarks hold it against.

    Attributes:
        graph: what it computes.
        weight_bytes: of every weight as it is streamed.
    """

    engine: Engine
    info: ModelInfo
    graph: Graph
    weight_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an engine will take of a machine, as far as its model decides it.

    Attributes:
        weight_bytes: of all weights. page_bytes: of one KV page. model_max_len: positions that the model was made for.
    """

    weight_bytes: int
    page_bytes: int
    model_max_len: int


def measure(config: EngineConfig) -> Footprint:
    """What an engine will take, without reading weights. Raises as `load_engine` does."""
    backend = open_backend(config)
    checkpoint = open_checkpoint(Path(config.model))
    model = build(checkpoint.config, str(checkpoint.config_file))
    return Footprint(
        weight_bytes=sum(backend.weight_bytes(model.graph, checkpoint).values()),
        page_bytes=backend.page_bytes(model.graph),
        model_max_len=model.max_position_embeddings,
    )


def load_engine(config: EngineConfig, progress: Progress | None = None) -> LoadedEngine:
    """Load a model. Everything that can be refused is refused before the weights are read.

    Args:
        progress: called with (weights loaded, weights in all) while loading.

    Raises:
        OctavoError: unreadable checkpoint, unsupported model, or settings that cannot work.
    """
    backend = open_backend(config)
    checkpoint = open_checkpoint(Path(config.model))
    model = build(checkpoint.config, str(checkpoint.config_file))
    for note in (*checkpoint.notes, *_unread(checkpoint, model.graph)):
        log.warning("%s", note)
    with _naming(checkpoint.path):
        weight_bytes = backend.weight_bytes(model.graph, checkpoint)
    page_bytes = backend.page_bytes(model.graph)
    num_pages, max_model_len = size_kv_cache(
        config,
        weight_bytes=sum(weight_bytes.values()),
        page_bytes=page_bytes,
        model_max_len=model.max_position_embeddings,
    )
    with _naming(checkpoint.path):
        executor = backend.executor(model, checkpoint, num_pages, max_model_len, progress)
    info = ModelInfo(
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        num_pages=num_pages,
        page_size=config.page_size,
        max_num_seqs=config.max_num_seqs,
        max_num_queued_reqs=config.max_num_queued_reqs,
        max_num_queued_tokens=config.max_num_queued_tokens,
        backend=backend.name,
        isa=backend.isa,
        threads=backend.threads,
        kv_cache_dtype=backend.kv_cache_dtype,
        weight_bytes=sum(weight_bytes.values()),
        kv_cache_bytes=num_pages * page_bytes,
    )
    return LoadedEngine(Engine(executor, config, max_model_len), info, model.graph, weight_bytes)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What a backend finds wrong with weights is said of the model that has them: backends know no files."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _unread(checkpoint: Checkpoint, graph: Graph) -> list[str]:
    """A note on the weights that the graph has no use for: a part of the model may be missing in it."""
    read = graph.parameters()
    unread = [name for name in checkpoint.tensors if name not in read]
    if not unread:
        return []
    names = ", ".join(unread[:_NAMED]) + (f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else "")
    return [f"{checkpoint.path}: {len(unread)} of {len(checkpoint.tensors)} weights are not used: {names}"]


def open_backend(config: EngineConfig) -> "Backend":
    """The backend of an engine, its settings checked.

    Raises:
        ConfigError: settings that cannot work, whatever the model.
    """
    config.validate()
    return _Cpu(config) if choose_backend(config.backend) == "cpu" else _Reference(config)


def instruction_sets() -> list[str]:
    """Those the native kernels have for this machine, the fastest first."""
    from octavo.backends.cpu._native import instruction_sets

    return instruction_sets()


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


class Backend(Protocol):
    """What loading needs to know of a backend."""

    name: str
    isa: str | None
    threads: int
    kv_cache_dtype: str

    def weight_bytes(self, graph: Graph, checkpoint: Checkpoint) -> dict[str, int]:
        """Bytes of every weight as it is streamed. What the checkpoint lacks is reported when weights are loaded."""
        ...

    def page_bytes(self, graph: Graph) -> int:
        """Bytes of a page, in all layers."""
        ...

    def executor(
        self, model: Model, checkpoint: Checkpoint, num_pages: int, max_model_len: int, progress: Progress | None
    ) -> Executor: ...


class _Cpu:
    """The native kernels."""

    name = "cpu"

    def __init__(self, config: EngineConfig) -> None:
        from octavo.backends.cpu._native import check_instruction_set

        if not instruction_sets():
            raise ConfigError(
                "the native kernels were compiled on another machine, for instructions that this one lacks; install "
                "Octavo again here, or use --backend reference",
                "backend",
            )
        if config.isa != "auto":
            try:
                check_instruction_set(config.isa)
            except ValueError as error:
                raise ConfigError(
                    f"isa {config.isa!r}: {error}; this machine runs {', '.join(instruction_sets())}"
                ) from None
        self.isa: str | None = instruction_sets()[0] if config.isa == "auto" else config.isa
        self.threads = config.threads or physical_cores()
        self.kv_cache_dtype = "fp16" if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
        self._config = config

    def weight_bytes(self, graph: Graph, checkpoint: Checkpoint) -> dict[str, int]:
        from octavo.backends.cpu.quantization import bits_by_weight, weight_bytes

        matrices = [checkpoint.tensors[name] for name in bits_by_weight(graph, None) if name in checkpoint.tensors]
        if self._config.quantization is not None and all(tensor.format.is_quantised for tensor in matrices):
            log.warning("quantization %s changes nothing: all weights are quantised already", self._config.quantization)
        return weight_bytes(graph, checkpoint.tensors, self._config.quantization)

    def page_bytes(self, graph: Graph) -> int:
        from octavo.backends.cpu.executor import layer_page_bytes

        size = self._config.page_size
        return sum(layer_page_bytes(layer, size, self.kv_cache_dtype) for layer in graph.attention_layers())

    def executor(
        self, model: Model, checkpoint: Checkpoint, num_pages: int, max_model_len: int, progress: Progress | None
    ) -> Executor:
        from octavo.backends.cpu.executor import CpuExecutor

        return CpuExecutor(
            model.graph,
            checkpoint.tensors,
            vocab_size=model.vocab_size,
            num_pages=num_pages,
            page_size=self._config.page_size,
            kv_cache_dtype=self.kv_cache_dtype,
            quantization=self._config.quantization,
            max_positions=max_model_len,
            threads=self.threads,
            isa=self.isa,
            progress=progress,
        )


class _Reference:
    """numpy, in float32 throughout."""

    name = "reference"

    def __init__(self, config: EngineConfig) -> None:
        only_cpu = {
            "isa": config.isa != "auto",
            "quantization": config.quantization is not None,
            "kv_cache_dtype": config.kv_cache_dtype not in ("auto", "fp32"),
        }
        for name, asked in only_cpu.items():
            if asked:
                raise ConfigError(
                    f"{name} {getattr(config, name)!r} needs the native kernels; the reference backend is float32 only"
                )
        self.isa: str | None = None
        self.threads = config.threads or physical_cores()
        self.kv_cache_dtype = "fp32"
        self._page_size = config.page_size

    def weight_bytes(self, graph: Graph, checkpoint: Checkpoint) -> dict[str, int]:
        return {name: 4 * prod(shape) for name, shape in graph.parameters().items()}

    def page_bytes(self, graph: Graph) -> int:
        return kv_bytes_per_token(graph, KV_ITEMSIZE[self.kv_cache_dtype]) * self._page_size

    def executor(
        self, model: Model, checkpoint: Checkpoint, num_pages: int, max_model_len: int, progress: Progress | None
    ) -> Executor:
        from octavo.backends.reference.executor import ReferenceExecutor

        return ReferenceExecutor(
            model.graph,
            checkpoint.tensors,
            vocab_size=model.vocab_size,
            num_pages=num_pages,
            page_size=self._page_size,
            threads=self.threads,
            progress=progress,
        )
