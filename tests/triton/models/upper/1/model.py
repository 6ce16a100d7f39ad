"""Writes texts in capitals."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            if b"two" in texts:
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("not two")))
                continue
            upper = np.array([each.upper() for each in texts.flat], object).reshape(texts.shape)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("UPPER", upper)]))
        return answers
