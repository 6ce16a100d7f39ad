from collections.abc import Callable
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from octavo.backends.protocol import Batch, Float32, StepResult

BLOCK: int
"""Input features that share a scale of quantised activations."""

MAX_HEAD_DIM: int
"""Features of an attention head, at most."""

class WeightKind(Enum):
    """How a weight is stored: integers of 4 or 8 bits, or floats."""

    U4 = ...
    S8 = ...
    F32 = ...
    F16 = ...
    BF16 = ...

class KvType(Enum):
    """How keys and values are stored. int8 has a scale per token and head."""

    fp32 = ...
    fp16 = ...
    int8 = ...

class Function(Enum):
    """The members of `octavo.graph.ops.ActivationFunction`."""

    silu = ...
    gelu = ...
    gelu_tanh = ...

def instruction_sets() -> list[str]: ...
def check_instruction_set(isa: str) -> None: ...
def tile(isa: str) -> int:
    """Output features that weights are packed by: the lanes of a vector."""

def measure_ceilings(isa: str, threads: int) -> tuple[float, float, float]: ...
def page_bytes(*, kv_heads: int, head_dim: int, page_size: int, kv_type: KvType) -> int: ...

class Value:
    """Float32 [rows, width] in a buffer: what an operation reads or writes."""

    def __init__(self, buffer: int, width: int) -> None:
        """The buffer's first columns."""

    @property
    def buffer(self) -> int: ...
    def columns(self, start: int, stop: int) -> Value:
        """A view of some of its columns."""

class Plan:
    """A list of operations, which `run` computes one after the other.

    What operations work on is added first, and is named by the number returned. Arrays are not copied: whoever passes
    one keeps it alive. Nothing can be added after `finish`.

    Raises:
        ValueError: what does not fit together, by width or by kind of weight.
    """

    def __init__(self, isa: str, threads: int) -> None: ...
    @property
    def tile(self) -> int: ...
    def add_buffer(self, width: int, *, selected: bool) -> int:
        """Room for values with a row for every token of a step or, `selected`, for every row of logits."""

    def add_weight(
        self,
        *,
        kind: WeightKind,
        group: int,
        half_scales: bool,
        minima: bool,
        precise: bool,
        out: int,
        in_: int,
        data: NDArray[np.uint8],
        bias: Float32 | None = None,
    ) -> int:
        """A matrix as `repack.PackedWeight` describes it; `precise`: 4-bit integers that take inputs of 16 bits."""

    def add_layer(
        self,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        window: int,
        scale: float,
        kv_type: KvType,
        pages: NDArray[np.uint8],
    ) -> int:
        """The KV pages of an attention layer; `window` 0 sees all positions."""

    def add_rotary(self, *, cosine: Float32, sine: Float32) -> int:
        """Tables [positions, head_dim / 2]."""

    def embed(self, *, out: Value, weight: int, by_position: bool) -> None: ...
    def linear_float(self, x: Value, *, out: Value, weight: int, residual: Value | None = None) -> None: ...
    def linear_quantised(self, *, out: Value, weight: int, residual: Value | None = None, gated: bool = False) -> None:
        """Multiply what was quantised for this weight last: by `quantise`, `attention` or, `gated`, `linear_gated`."""

    def linear_gated(self, *, weight: int, function: Function, reader: int, selected: bool) -> None:
        """Multiply what was quantised for this weight, take the product of the first half of the result, through a
        function, and the second half, and quantise it for the weight `reader`."""

    def rms_norm(self, x: Value, *, out: Value, weight: Float32, epsilon: float) -> None: ...
    def layer_norm(self, x: Value, *, out: Value, weight: Float32, bias: Float32, epsilon: float) -> None: ...
    def rope(self, x: Value, *, out: Value, rotary: int) -> None: ...
    def store_kv(self, *, keys: Value, values: Value, layer: int) -> None: ...
    def attention(self, x: Value, *, out: Value, layer: int, reader: int | None = None) -> None:
        """Attend to what is stored; the result is quantised for the weight `reader` as well."""

    def activation(self, x: Value, *, out: Value, function: Function, gate: Value | None = None) -> None:
        """`function(x)`, times the gate."""

    def add(self, x: Value, y: Value, *, out: Value) -> None: ...
    def multiply(self, x: Value, y: Value, *, out: Value) -> None: ...
    def scale(self, x: Value, *, out: Value, factor: float) -> None: ...
    def select_rows(self, x: Value, *, out: Value) -> None: ...
    def quantise(self, x: Value, *, reader: int) -> None:
        """Leave x in integers for the linear of the weight `reader`."""

    def finish(self) -> None: ...
    def run(self, batch: Batch, result: StepResult, masks_written: Callable[[], object] | None = None) -> None:
        """Compute a step. `result.tokens` has the targets before and the tokens after; all else of it is written."""
