"""Asks other models, and says what they answered."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

TWO = np.array([[1, 2, 3, 4]], np.float32)


def add_sub(model="add_sub", wanted=("SUM",), names=("A", "B"), **more):
    return pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(each, TWO) for each in names],
        requested_output_names=list(wanted),
        **more,
    )


def said(response):
    if response.has_error():
        return "error: " + response.error().message()
    return {each.name(): each.as_numpy().ravel().tolist() for each in response.output_tensors()}


def words(text, **more):
    return pb_utils.InferenceRequest(
        model_name="says",
        inputs=[pb_utils.Tensor("WORDS", np.array([text.encode()], object))],
        requested_output_names=["OUT"],
        **more,
    )


def spoken(response):
    if response.has_error():
        return "error: " + response.error().message()
    return [each.decode() for tensor in response.output_tensors() for each in tensor.as_numpy().flat]


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            act = pb_utils.get_input_tensor_by_name(request, "ACT").as_numpy().flat[0].decode()
            try:
                found = getattr(self, act)()
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            text = np.array([json.dumps(found)], object)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", text)]))
        return answers

    def sum(self):
        return said(add_sub().exec())

    def both(self):
        return said(add_sub(wanted=("SUM", "DIFF")).exec())

    def ensemble(self):
        return said(add_sub("ensemble", ["RESULT"], ("X", "Y")).exec())

    def version(self):
        return said(add_sub("versions", model_version=1).exec())

    def no_version(self):
        return said(add_sub("versions", model_version=2).exec())

    def nobody(self):
        return said(add_sub("nobody").exec())

    def no_input(self):
        return said(add_sub(names=("A",)).exec())

    def wrong_input(self):
        return said(add_sub(names=("A", "C")).exec())

    def no_output(self):
        return said(add_sub(wanted=("NONE",)).exec())

    def decoupled(self):
        return [spoken(each) for each in words("one two three").exec(decoupled=True)]

    def nothing(self):
        return [spoken(each) for each in words("").exec(decoupled=True)]

    def fails(self):
        return [spoken(each) for each in words("one fails").exec(decoupled=True)]

    def decoupled_as_one(self):
        return spoken(words("one").exec())

    def one_as_decoupled(self):
        return [said(each) for each in add_sub().exec(decoupled=True)]

    def sequence(self):
        found = []
        for number in range(3):
            flags = {
                0: pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
                2: pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
            }
            request = pb_utils.InferenceRequest(
                model_name="controls",
                inputs=[pb_utils.Tensor("IN", np.array([[number + 1]], np.int32))],
                requested_output_names=["OUT"],
                correlation_id=991,
                flags=flags.get(number, 0),
            )
            found.append(said(request.exec()))
        return found
