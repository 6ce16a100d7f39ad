"""Says what shape its input has, and gives it back."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            said = np.full((len(array), 1), str(array.shape), object)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("SHAPE", said), pb_utils.Tensor("OUT", array)]))
        return answers
