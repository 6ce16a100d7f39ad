"""Asks other models what a request says."""

import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


def text(value):
    return pb_utils.Tensor("act", np.array([[value.encode()]], object))


def asked(model, inputs, outputs=(), decoupled=False, **options):
    request = pb_utils.InferenceRequest(
        model_name=model, inputs=inputs, requested_output_names=list(outputs), **options
    )
    return request.exec(decoupled=decoupled)


def x(value, columns=2):
    return pb_utils.Tensor("x", np.full((1, columns), value, np.float32))


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        try:
            asked("everything", [x(1)])
        except pb_utils.TritonModelException as error:
            self.early = str(error)

    def execute(self, requests):
        responses = []
        for request in requests:
            act, _, rest = request.inputs()[0].as_numpy()[0, 0].decode().partition(" ")
            said = json.dumps(getattr(self, act)(rest))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("said", np.array([said], object))]))
        return responses

    def said_early(self, rest):
        return self.early

    def doubles(self, rest):
        response = asked("everything", [x(float(rest))], ["y"])
        [y] = response.output_tensors()
        y.as_numpy()[0, 0] += 1  # it is the model's own
        return y.as_numpy().tolist(), json.loads(response.parameters())["unit"]

    def doubles_much(self, rest):
        y = asked("everything", [x(float(rest), 200_000)], ["y"]).output_tensors()[0].as_numpy()
        return y.shape, float(y.min()), float(y.max())

    def tells(self, rest):
        response = asked(
            "everything",
            [x(1)],
            ["said"],
            request_id="mine",
            correlation_id="a sequence",
            flags=pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
            timeout=5_000_000,
            parameters={"p": 1},
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        return json.loads(pb_utils.get_output_tensor_by_name(response, "said").as_numpy()[0, 0])

    def fails(self, rest):
        inputs = {
            "missing": ("nobody", [x(1)]),
            "input": ("everything", [text("")]),
            "output": ("everything", [x(1)], ["z"]),
            "model": ("everything", [x(1), text("raise")]),
            "streams": ("streams", [text("count 3")]),
        }[rest]
        response = asked(*inputs)
        assert response.has_error()
        assert response.output_tensors() == []
        return response.error().message(), response.error().code().name

    def itself(self, rest):
        """Asks itself, so often."""
        if rest == "0":
            return "here"
        response = asked(self.name, [text(f"itself {int(rest) - 1}")])
        if response.has_error():
            return response.error().message()
        return json.loads(response.output_tensors()[0].as_numpy()[0])

    def streams(self, rest):
        tensor = pb_utils.Tensor("act", np.array([rest.encode()], object))
        responses = asked("streams", [tensor], decoupled=True)
        found = [self.one(each) for each in responses]
        return found, found == [self.one(each) for each in responses]  # it can be gone through again

    def one(self, response):
        if response.has_error():
            return response.error().message()
        return [int(each.as_numpy()[0]) for each in response.output_tensors()]

    def cancels(self, rest):
        tensor = pb_utils.Tensor("act", np.array([b"until_cancelled"], object))
        responses = asked("streams", [tensor], decoupled=True)
        next(responses)
        responses.cancel()
        *_, last = responses
        return last.error().code().name

    def threads(self, rest):
        found = [None] * int(rest)

        def ask(at):
            found[at] = float(asked("everything", [x(at)], ["y"]).output_tensors()[0].as_numpy()[0, 0])

        threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(found))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return found

    def ready(self, rest):
        return pb_utils.is_model_ready("everything"), pb_utils.is_model_ready("nobody")

    def loads(self, rest):
        try:
            pb_utils.load_model(rest)
        except pb_utils.TritonModelException as error:
            return str(error)
        return "loaded"

    def unloads(self, rest):
        pb_utils.unload_model(model_name=rest)
        return "unloaded"
