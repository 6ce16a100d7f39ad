"""Has figures of its own."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily
        self.seen = family(name="seen_total", description="Values seen.", kind=family.COUNTER)
        self.last = family(name="last_value", description="The last one.", kind=family.GAUGE)
        self.sizes = family(name="value_sizes", description="How large they are.", kind=family.HISTOGRAM)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.count = self.seen.Metric(labels=labels)
        self.value = self.last.Metric(labels=labels)
        self.size = self.sizes.Metric(labels=labels, buckets=[1, 10])

    def execute(self, requests):
        responses = []
        for request in requests:
            [x] = request.inputs()[0].as_numpy()
            self.count.increment(1)
            self.value.set(x)
            self.size.observe(x)
            y = np.array([self.count.value()])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
