"""Has a request computed again and again, and answers a little each time."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            n = request.inputs()[0].as_numpy()
            n -= 1
            last = n[0] <= 0
            if not last:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            request.get_response_sender().send(
                pb_utils.InferenceResponse([pb_utils.Tensor("left", np.array(n))]),
                flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0,
            )
