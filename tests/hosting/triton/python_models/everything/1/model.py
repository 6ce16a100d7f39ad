"""Does what a request says."""

import json
import os
import sys
import time

import numpy as np
import triton_python_backend_utils as pb_utils


def act_of(request):
    tensor = pb_utils.get_input_tensor_by_name(request, "act")
    return "" if tensor is None else tensor.as_numpy()[0, 0].decode()


class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.seen = 0

    def execute(self, requests):
        self.seen += 1
        acts = [act_of(request) for request in requests]
        if acts[0].startswith("return "):
            return eval(acts[0].removeprefix("return "))
        return [self.answer(request, act, len(requests)) for request, act in zip(requests, acts, strict=True)]

    def answer(self, request, act, count):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if act == "raise":
            raise ValueError("this is too much")
        if act == "exit":
            sys.exit(3)
        if act == "die":
            os._exit(7)
        if act == "hang":
            time.sleep(1000)
        if act.startswith("error "):
            code = getattr(pb_utils.TritonError, act.removeprefix("error "))
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("not this one", code))
        if act == "args":
            said = self.args
        elif act.startswith("eval "):
            said = self.evaluated(act.removeprefix("eval "), request)
        else:
            said = {
                "count": count,
                "request_id": request.request_id(),
                "correlation_id": request.correlation_id(),
                "flags": request.flags(),
                "timeout": request.timeout(),
                "parameters": json.loads(request.parameters()),
                "wanted": sorted(request.requested_output_names()),
                "cancelled": request.is_cancelled(),
                "context": request.trace().get_context(),
            }
        x *= 2
        outputs = [
            pb_utils.Tensor("y", x),
            pb_utils.Tensor("said", np.array([[json.dumps(said)]] * len(x), dtype=object)),
            pb_utils.Tensor("more", x),
        ]
        return pb_utils.InferenceResponse(outputs, parameters={"seen": self.seen, "even": True, "unit": "m"})

    def evaluated(self, code, request):
        try:
            return repr(eval(code))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
