"""Is as ready as it was last told to be; of what is no answer, not."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.ready = True

    async def is_ready(self):
        return self.ready

    def execute(self, requests):
        responses = []
        for request in requests:
            was = bool(self.ready)
            [self.ready] = request.inputs()[0].as_numpy().tolist()
            if "wait" in request.parameters():
                time.sleep(0.5)
            if "break" in request.parameters():
                self.ready = "perhaps"
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("was", np.array([was]))]))
        return responses
