"""Has no configuration but what it says itself."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        known = auto_complete_model_config.as_dict()
        assert [each["name"] for each in known["input"]] == []
        auto_complete_model_config.add_input({"name": "x", "data_type": "TYPE_INT64", "dims": [2]})
        auto_complete_model_config.add_input({"name": "z", "data_type": "TYPE_INT64", "dims": [2], "optional": True})
        auto_complete_model_config.add_output({"name": "y", "data_type": "TYPE_INT64", "dims": [2]})
        auto_complete_model_config.set_max_batch_size(3)
        auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", sum(each.as_numpy() for each in request.inputs()))])
            for request in requests
        ]
