"""Sends any number of responses, from wherever."""

import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def response(number):
    return pb_utils.InferenceResponse([pb_utils.Tensor("n", np.array([number], np.int32))])


class TritonPythonModel:
    def initialize(self, args):
        self.cancelled = 0

    def execute(self, requests):
        for request in requests:
            act, _, number = request.inputs()[0].as_numpy()[0].decode().partition(" ")
            if act == "returns":
                return [response(1)]
            getattr(self, act)(request, int(number or 0))
        return None

    def count(self, request, number):
        sender = request.get_response_sender()
        for each in range(number):
            sender.send(response(each))
        sender.send(flags=FINAL)

    def last(self, request, number):
        sender = request.get_response_sender()
        for each in range(number):
            sender.send(response(each), flags=FINAL if each == number - 1 else 0)

    def later(self, request, number):
        threading.Thread(target=self._later, args=(request.get_response_sender(), number)).start()

    def _later(self, sender, number):
        for each in range(number):
            time.sleep(0.01)
            sender.send(response(each))
        sender.send(flags=FINAL)

    def until_cancelled(self, request, number):
        threading.Thread(target=self._until_cancelled, args=(request.get_response_sender(),)).start()

    def _until_cancelled(self, sender):
        while not sender.is_cancelled():
            sender.send(response(0))
            time.sleep(0.005)
        self.cancelled += 1
        sender.send(flags=FINAL)

    def waits_until_cancelled(self, request, number):
        sender = request.get_response_sender()
        sender.send(response(0))
        while not request.is_cancelled():
            time.sleep(0.005)
        self.cancelled += 1
        sender.send(flags=FINAL)

    def cancelled_so_far(self, request, number):
        request.get_response_sender().send(response(self.cancelled), flags=FINAL)

    def lets_go(self, request, number):
        sender = request.get_response_sender()
        sender.send(response(5))

    def says_nothing(self, request, number):
        pass

    def fails(self, request, number):
        request.get_response_sender().send(response(1))
        raise ValueError("after the first")

    def refuses(self, request, number):
        sender = request.get_response_sender()
        sender.send(response(1))
        sender.send(
            pb_utils.InferenceResponse(error=pb_utils.TritonError("no more", pb_utils.TritonError.NOT_FOUND)), FINAL
        )

    def twice(self, request, number):
        sender = request.get_response_sender()
        sender.send(response(1), FINAL)
        try:
            sender.send(response(2))
        except pb_utils.TritonModelException as error:
            pb_utils.Logger.log_info(f"as it should be: {error}")
