"""Batches come from clients alone. Sees other shapes than they do, and answers from another thread."""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request, request.get_response_sender(), len(requests))).start()

    def answer(self, request, sender, count):
        x = request.inputs()[0].as_numpy()
        assert x.shape[1:] == (6,)
        count = np.full((len(x), 1), count, np.int32)
        outputs = [pb_utils.Tensor("y", x), pb_utils.Tensor("count", count)]
        sender.send(pb_utils.InferenceResponse(outputs), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        print("let go of everything", flush=True)
