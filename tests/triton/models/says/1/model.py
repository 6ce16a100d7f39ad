"""Sends responses as a request says, one for each word."""

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            words = pb_utils.get_input_tensor_by_name(request, "WORDS").as_numpy().flat[0].decode().split()
            ended = False
            for word in words:
                if word == "fails":
                    response = pb_utils.InferenceResponse(error=pb_utils.TritonError("it failed"))
                else:
                    tensor = pb_utils.Tensor("OUT", np.array([word.encode()], object))
                    response = pb_utils.InferenceResponse([tensor])
                ended = word == "last"
                sender.send(response, FINAL if ended else 0)
                if ended:
                    break
            if not ended:
                sender.send(flags=FINAL)
