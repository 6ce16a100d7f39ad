"""Requests to both servers, and what their answers have in common."""

import queue
import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton_grpc
from numpy.typing import NDArray

from tests.triton.servers import Served

Both = tuple[Served, Served]
"""Octavo and Triton."""

INFER = "/v2/models/{}/infer"

Request = tuple[str, str, Any]
"""Method, path, and JSON if there is any."""


def tensor(name: str, datatype: str, shape: list[int], data: Any, **more: Any) -> dict[str, Any]:
    """An input in JSON."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def asks(model: str, *inputs: Any, **more: Any) -> Request:
    """An inference."""
    return "POST", INFER.format(model), {"inputs": list(inputs), **more}


def ask(server: Served, request: Request) -> httpx.Response:
    """The answer to a request."""
    method, path, body = request
    return server.ask(method, path, **({} if body is None else {"json": body}))


def seen(answer: httpx.Response) -> Any:
    """What a client reads of it, without what Triton's ensembles say of sequences that there are none of."""
    try:
        value = answer.json()
    except ValueError:
        value = answer.text
    if isinstance(value, dict):
        value.pop("parameters", None)
    return value


_REQUEST_ID = re.compile(r"\[request id: [^\]]*\] ")


def say_the_same(ours: str, theirs: str) -> bool:
    """Triton's words, after which more may be said. It puts the request's id in front of some of them, and advice about
    configurations behind others."""
    return ours.startswith(_REQUEST_ID.sub("", theirs).partition(" NOTE: ")[0].rstrip(" ."))


# --- gRPC -------------------------------------------------------------------------------------------------------------


def grpc_input(name: str, array: NDArray[Any], datatype: str) -> triton_grpc.InferInput:
    """An input of Triton's client."""
    found = triton_grpc.InferInput(name, list(array.shape), datatype)
    return found.set_data_from_numpy(array)


def text_input(name: str, text: str) -> triton_grpc.InferInput:
    """One text."""
    return grpc_input(name, np.array([text.encode()], object), "BYTES")


def number_input(name: str, *shape: int, value: int) -> triton_grpc.InferInput:
    """Whole numbers that are all the same."""
    return grpc_input(name, np.full(shape, value, np.int32), "INT32")


class Streaming:
    """A stream of Triton's client.

    Attributes:
        answers: that have come: the error's message, or the id, the outputs by name, and whether it is the last one.
    """

    def __init__(self, client: triton_grpc.InferenceServerClient) -> None:
        self._came: queue.Queue[Any] = queue.Queue()
        self.client = client
        client.start_stream(lambda result, error: self._came.put((result, error)))

    def send(self, model: str, *inputs: triton_grpc.InferInput, **more: Any) -> None:
        """One more request."""
        self.client.async_stream_infer(model, list(inputs), **more)

    def take(self) -> Any:
        """The next answer."""
        result, error = self._came.get(timeout=60)
        if error is not None:
            return str(error.message())
        response = result.get_response()
        outputs = {each.name: result.as_numpy(each.name).tolist() for each in response.outputs}
        return response.id, outputs, response.parameters["triton_final_response"].bool_param

    def until(self, holds: Callable[[list[Any]], bool]) -> list[Any]:
        """The answers that come until something is so."""
        found = [self.take()]
        while not holds(found):
            found.append(self.take())
        return found


def streamed(
    server: Served,
    *requests: tuple[str, dict[str, Any]],
    answers: int = 0,
    until: Callable[[list[Any]], bool] | None = None,
) -> list[Any]:
    """So many answers to the requests of one stream, or those until something is so. A request is a model, and the
    arguments, of which "inputs" are a list."""
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        stream = Streaming(client)
        for model, how in requests:
            stream.send(model, *how["inputs"], **{name: each for name, each in how.items() if name != "inputs"})
        found = stream.until(until or (lambda came: len(came) == answers))
        client.stop_stream()
    return found
