"""Computes for as long as a request says, and counts what it has begun and what was cancelled."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.begun = self.cancelled = 0

    def execute(self, requests):
        answers = []
        for request in requests:
            seconds = float(pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy().flat[0])
            if seconds > 0:
                self.begun += 1
                ends = time.monotonic() + seconds
                while time.monotonic() < ends and not request.is_cancelled():
                    time.sleep(0.01)
                self.cancelled += request.is_cancelled()
            answers.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("BEGUN", np.array([self.begun], np.int32)),
                        pb_utils.Tensor("CANCELLED", np.array([self.cancelled], np.int32)),
                    ]
                )
            )
        return answers
