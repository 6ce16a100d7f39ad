"""The models as BentoML serves them."""

from __future__ import annotations

import time

import bentoml


@bentoml.service
class Upper:
    @bentoml.api
    def predict(self, text: str) -> str:
        return text.upper()


@bentoml.service
class Sleeper:
    """Takes 10 ms for a batch, and answers how many requests were in it."""

    @bentoml.api(batchable=True, max_batch_size=8)
    def predict(self, x: list[float]) -> list[int]:
        time.sleep(0.010)
        return [len(x)] * len(x)


@bentoml.service
class SleeperAlone:
    @bentoml.api
    def predict(self, x: list[float]) -> list[int]:
        time.sleep(0.010)
        return [len(x)]
