"""The native CPU executor: lowers a graph once, then runs every step as one call with the GIL released."""

from collections.abc import Callable, Mapping

import numpy as np

from octavo.backends.common.cores import physical_cores
from octavo.backends.cpu._native import MAX_HEAD_DIM, KvType, Plan, instruction_sets, page_bytes
from octavo.backends.cpu.lowering import KvPages, Lowering
from octavo.backends.cpu.memory import aligned_zeros
from octavo.backends.cpu.packing import Parameters
from octavo.backends.cpu.quantization import bits_by_weight
from octavo.backends.cpu.repack import Layout, layout_of
from octavo.backends.protocol import Batch, FinishedStep, StepResult
from octavo.errors import ConfigError
from octavo.graph.ops import Attention, Graph
from octavo.graph.passes import merge_sibling_linears, select_rows_early
from octavo.weights.tensor import Tensor


class CpuExecutor:
    """One model with its KV pages, computed by native kernels; satisfies `octavo.backends.protocol.Executor`.

    Linears quantise their input per row and 32 features. With 8-bit weights it has 16 bits, and so it has with the
    4-bit weights of what becomes queries, keys or values, of what leaves an activation function, and of all that
    follows the last attention; with other 4-bit weights it has 8 bits, and a factor for every eight features. Those
    eight that are rounded most have 8 bits more, but for the inputs of output projections, which attention quantises
    head by head where a KV head's query heads are whole blocks of 32 features. Float weights take float32. Everything
    else is float32. A row's results do not depend on the batch, on chunking, or on the number of threads.

    Args:
        graph: the model. tensors: its weights by name.
        vocab_size: width of the logits.
        num_pages, page_size: the KV cache. Its memory is taken as pages are first written.
        kv_cache_dtype: how keys and values are stored, a member of `KvType` by name.
        quantization: of weights that are not quantised yet: "q8", "q4" or None.
        max_positions: the longest sequence.
        threads: None is one for each physical core this process may run on.
        isa: one of `instruction_sets()`; None is the best.
        progress: called with (weights packed, weights in all) while loading.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        *,
        vocab_size: int,
        num_pages: int,
        page_size: int = 16,
        kv_cache_dtype: str = "fp16",
        quantization: str | None = None,
        max_positions: int,
        threads: int | None = None,
        isa: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.num_pages = num_pages
        self.page_size = page_size
        threads = threads or physical_cores()
        try:
            self._plan = Plan(isa or instruction_sets()[0], threads)
        except RuntimeError as error:
            raise ConfigError(f"threads {threads}: {error}; use fewer") from None
        layers = [
            aligned_zeros(num_pages, layer_page_bytes(op, page_size, kv_cache_dtype)) for op in graph.attention_layers()
        ]
        merged = _merged(graph, tensors, quantization)
        parameters = Parameters(self._plan, merged, tensors, quantization, progress)
        pages = KvPages(layers, page_size, KvType[kv_cache_dtype])
        lowering = Lowering(self._plan, merged, parameters, pages, max_positions)
        self._arrays = lowering.arrays  # which the plan points to; the checkpoint's own memory is let go

    def submit(self, batch: Batch, masks_written: Callable[[], object] | None = None) -> FinishedStep:
        """Compute a step. Nothing is left to wait for."""
        rows = batch.logits
        count, width = len(rows.rows), max(int(rows.num_logprobs.max(initial=0)), 0)
        result = StepResult(
            tokens=rows.targets.copy(),
            logprobs=np.empty(count, np.float32),
            top_tokens=np.empty((count, width), np.int32),
            top_logprobs=np.empty((count, width), np.float32),
        )
        self._plan.run(batch, result, masks_written)
        return FinishedStep(result)


def _merged(graph: Graph, tensors: Mapping[str, Tensor], quantization: str | None) -> Graph:
    """The graph with sibling linears merged whose weights are packed alike."""
    bits = bits_by_weight(graph, quantization)

    def layout(name: str) -> Layout | None:
        return layout_of(tensors[name].format, bits[name]) if name in tensors else None

    return merge_sibling_linears(select_rows_early(graph), layout)


def layer_page_bytes(layer: Attention, page_size: int, kv_cache_dtype: str) -> int:
    """Bytes of one page of one layer.

    Raises:
        ConfigError: heads that are too wide for the kernels.
    """
    if layer.head_dim > MAX_HEAD_DIM:
        raise ConfigError(
            f"attention heads of {layer.head_dim} features: the cpu backend takes at most {MAX_HEAD_DIM}; "
            "use the reference backend"
        )
    return page_bytes(
        kv_heads=layer.num_kv_heads, head_dim=layer.head_dim, page_size=page_size, kv_type=KvType[kv_cache_dtype]
    )
