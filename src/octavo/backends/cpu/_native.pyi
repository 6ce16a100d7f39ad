import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]: ...
def check_instruction_set(isa: str) -> None: ...
def tile(isa: str) -> int:
    """Output features that weights are packed by: the lanes of a vector."""

def measure_ceilings(isa: str, threads: int) -> tuple[float, float, float]: ...
def page_bytes(kv_heads: int, head_dim: int, page_size: int, kv_type: int) -> int: ...

_RowAdjustment = tuple[
    int,
    NDArray[np.bool_] | None,
    NDArray[np.int32] | None,
    float,
    float,
    float,
    NDArray[np.int32] | None,
    NDArray[np.float32] | None,
    NDArray[np.int32] | None,
]
"""The row, then the fields of `octavo.backends.protocol.Adjustment`."""

class Plan:
    def __init__(self, isa: str, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def tile(self) -> int: ...
    def add_buffer(self, width: int, selected: bool) -> int: ...
    def add_weight(
        self,
        kind: int,
        group: int,
        half_scales: bool,
        minima: bool,
        precise: bool,
        out: int,
        in_: int,
        data: NDArray[np.uint8],
        bias: NDArray[np.float32] | None = None,
    ) -> int: ...
    def add_layer(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        window: int,
        scale: float,
        kv_type: int,
        pages: NDArray[np.uint8],
    ) -> int: ...
    def add_rotary(self, half: int, cosine: NDArray[np.float32], sine: NDArray[np.float32]) -> int: ...
    def add_op(
        self,
        kind: int,
        selected: bool,
        x: tuple[int, int],
        y: tuple[int, int],
        out: tuple[int, int],
        width: int,
        length: int,
        index: int,
        function: int,
        reader: int,
        records: int,
        factor: float,
        by_position: bool,
        weight: NDArray[np.float32] | None = None,
        bias: NDArray[np.float32] | None = None,
    ) -> None: ...
    def finish(self) -> None: ...
    def run(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        slots: NDArray[np.int64],
        query_starts: NDArray[np.int32],
        page_table: NDArray[np.int32],
        table_rows: NDArray[np.int32],
        copies: NDArray[np.int32],
        rows: NDArray[np.int32],
        logit_rows: NDArray[np.int64],
        sample_positions: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        temperature: NDArray[np.float32],
        top_k: NDArray[np.int32],
        top_p: NDArray[np.float32],
        min_p: NDArray[np.float32],
        num_logprobs: NDArray[np.int32],
        adjustments: list[_RowAdjustment],
        sampled: NDArray[np.int32],
        logprobs: NDArray[np.float32],
        top_tokens: NDArray[np.int32],
        top_logprobs: NDArray[np.float32],
    ) -> None:
        """Compute a step. `sampled` has the targets before and the tokens after; what follows it is written."""
