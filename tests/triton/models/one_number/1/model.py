"""Takes a number that has no dimension of its own."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            answers.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor("DIMENSIONS", np.full((len(array),), array.ndim, np.int32))]
                )
            )
        return answers
