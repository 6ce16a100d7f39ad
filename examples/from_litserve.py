"""The first example of LitServe's README as a model of Octavo: a request goes through two models of one process.

octavo serve examples/from_litserve.py
curl http://127.0.0.1:8000/v1/models/engine/predict -H 'Content-Type: application/json' -d '{"input": 4.0}'
"""

from typing import TypedDict

import octavo


class Result(TypedDict):
    output: float


@octavo.model
class Engine:
    def load(self) -> None:  # as LitAPI.setup: weights, databases, and what else there is
        self.text_model = lambda x: x**2
        self.vision_model = lambda x: x**3

    def predict(self, input: float) -> Result:  # noqa: A002 (requests call it so)
        return {"output": self.text_model(input) + self.vision_model(input)}
