"""Has a file of another name, and files beside it."""

import beside
import numpy as np
import triton_python_backend_utils as pb_utils

from .within import twice


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor.from_dlpack("y", twice(request.inputs()[0])),
                    pb_utils.Tensor("folder", np.array([beside.folder()], dtype=object)),
                ]
            )
            for request in requests
        ]
