"""`pb_utils.InferenceResponseSender`."""

import threading
from typing import Protocol

from octavo.hosting.triton.python_backend.errors import TritonModelException
from octavo.hosting.triton.python_backend.response import InferenceResponse

COMPLETE_FINAL = 1
"""`TRITONSERVER_RESPONSE_COMPLETE_FINAL`."""


class Outlet(Protocol):
    """Where the responses to one request go."""

    def send(self, response: InferenceResponse | None, *, final: bool) -> None:
        """Send a response, and say whether it was the last one. Any thread may do so."""
        ...

    def is_cancelled(self) -> bool:
        """Whether nobody waits for them any more."""
        ...


class InferenceResponseSender:
    """Sends the responses to one request, from any thread, also when `execute` has returned.

    Args:
        decoupled: whether there may be any number of them.
    """

    def __init__(self, outlet: Outlet, *, decoupled: bool) -> None:
        self._outlet = outlet
        self._decoupled = decoupled
        self._sent = 0
        self._closed = False
        self._changing = threading.Lock()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response.

        Args:
            flags: `TRITONSERVER_RESPONSE_COMPLETE_FINAL` if no other follows; there may be no response then.

        Raises:
            TritonModelException: it cannot be sent, or cannot be any more.
        """
        if flags not in (0, COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and flags == 0:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(f"send(response: InferenceResponse), not {type(response).__name__}")
        with self._changing:
            self.note(response is not None, final=flags == COMPLETE_FINAL)
            self._outlet.send(response, final=flags == COMPLETE_FINAL)

    def note(self, has_response: bool, *, final: bool) -> None:
        """A response, or the end, is going to be sent. Raises TritonModelException: it must not."""
        if not self._decoupled:
            if has_response and self._sent:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send more than one response."
                )
            if not has_response and final and not self._sent:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
                )
        if self._closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self._closed = final
        self._sent += 1

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the responses any more. The end has to be sent all the same."""
        return self._outlet.is_cancelled()

    def close(self) -> bool:
        """Nothing can be sent any more. Returns whether that was so already."""
        with self._changing:
            was, self._closed = self._closed, True
            return was

    def __del__(self) -> None:
        # A model that has let go of it sends nothing any more, and nobody is to wait for that.
        if not self.close():
            self._outlet.send(None, final=True)
