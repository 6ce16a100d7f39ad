from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from octavo.backends.protocol import Batch, StepResult

def instruction_sets() -> list[str]: ...
def check_instruction_set(isa: str) -> None: ...
def tile(isa: str) -> int:
    """Output features that weights are packed by: the lanes of a vector."""

def measure_ceilings(isa: str, threads: int) -> tuple[float, float, float]: ...
def page_bytes(kv_heads: int, head_dim: int, page_size: int, kv_type: int) -> int: ...

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
    def run(self, batch: Batch, result: StepResult, masks_written: Callable[[], object] | None = None) -> None:
        """Compute a step. `result.tokens` has the targets before and the tokens after; all else of it is written."""
