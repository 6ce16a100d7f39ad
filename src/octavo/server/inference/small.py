"""Small bodies, of which most say in their JSON what others have said before: clients send other numbers in the same
tensors. What such a JSON means is kept."""

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.inference import Outline, Outlined
from octavo.hosting.info import HostedInfo
from octavo.hosting.wire import Details
from octavo.server.inference.http import CallHead
from octavo.server.inference.infer import read_small
from octavo.server.inference.tensors_in import head_length
from octavo.server.inference.tensors_out import ReplyWriter
from octavo.server.keys import PriorityRange

MEANINGS, MEANING_BYTES = 256, 4096
"""How many are kept, of JSON up to so many bytes each."""

Meaning = tuple[Outline, int, float, Details | None, ReplyWriter]
"""What is asked for, its priority, the seconds that it may wait, what the model may want to know, and what writes the
reply."""


class SmallReader:
    """Reads bodies, and remembers."""

    def __init__(self) -> None:
        self._meanings: dict[tuple[str, PriorityRange | None, bytes], Meaning] = {}

    def forget(self) -> None:
        """The models that are there have changed: what is remembered knows others."""
        self._meanings.clear()

    def read(
        self, call: CallHead, deployment: HostedDeployment, info: HostedInfo, data: bytes
    ) -> tuple[Outlined, ReplyWriter] | None:
        """What a body asks for; None if it takes so long to read that it is for a thread.

        Raises:
            InferenceError, ApiError: it cannot be computed.
        """
        size = head_length(call, len(data))
        following = len(data) - size
        # What headers say is not in the JSON.
        known = 0 < size <= MEANING_BYTES and call.server.http_forwarding is None
        key = (deployment.name, call.context.priorities, data[:size]) if known else None
        if key is not None and (meaning := self._meanings.get(key)) is not None:
            outline, priority, timeout, details, writer = meaning
            if outline.info is info and outline.size == following:
                trace = call.context.trace
                if trace is not None and details is not None:
                    trace.request_id = details.id
                return Outlined(outline, (memoryview(data)[size:],), priority, timeout, details, trace), writer
        asked = read_small(call, deployment, info, data)
        if asked is None:
            return None
        inference, writer = asked
        outlined = deployment.client.outline(inference)
        if key is not None and writer.lasts and outlined.outline.size == following:  # nothing of them is in the JSON
            if len(self._meanings) >= MEANINGS:
                self._meanings.clear()
            self._meanings[key] = (outlined.outline, inference.priority, inference.timeout, inference.details, writer)
        return outlined, writer
