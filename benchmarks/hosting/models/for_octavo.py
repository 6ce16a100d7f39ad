"""The models as Octavo serves them."""

import time

import numpy as np
from numpy.typing import NDArray

import octavo


@octavo.model(max_batch_size=32)
class Identity:
    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x


@octavo.model(max_batch_size=8)
class Sleeper:
    """Takes 10 ms for a batch, and answers how many requests were in it."""

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(0.010)
        return np.full((len(x), 1), len(x), np.float32)


@octavo.model(name="sleeper_alone", max_batch_size=1)
class SleeperAlone(Sleeper):
    """The same, one request at a time."""


@octavo.model
def upper(text: str) -> str:
    return text.upper()
