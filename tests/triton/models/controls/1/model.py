"""Says what the scheduler tells it of each request of a sequence, and adds up."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            told = {each.name(): each.as_numpy().ravel()[0] for each in request.inputs()}
            told = {name: each.decode() if isinstance(each, bytes) else each.item() for name, each in told.items()}
            sequence = told["CORRID"]
            value = told.pop("IN")
            total = self.sums[sequence] = value if told["START"] else self.sums.get(sequence, 0) + value
            told["flags"] = request.flags()
            told["correlation_id"] = request.correlation_id()
            answers.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("OUT", np.array([[total]], np.int32)),
                        pb_utils.Tensor("SAID", np.array([[json.dumps(told, sort_keys=True)]], object)),
                    ]
                )
            )
        return answers
