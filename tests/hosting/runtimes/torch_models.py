"""What several tests of PyTorch's models use."""

import numpy as np
import torch

from octavo.hosting.signature import TensorSpec

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class Linear(torch.nn.Module):
    """A tensor in, a tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


def free(name: str, optional: bool = False) -> TensorSpec:
    return TensorSpec(name=name, datatype=None, dims=None, optional=optional)
