"""MLServer's `/infer_stream`: a request as for `/infer`, and each result as an event with the reply's JSON."""

from collections.abc import AsyncIterator

from octavo.hosting.errors import InferenceError
from octavo.server.inference.events import send_events
from octavo.server.inference.http import Call
from octavo.server.inference.infer import read_request
from octavo.server.inference.work import begin, read_asked
from octavo.server.offload import off_loop


async def infer_stream(call: Call) -> None:
    """Compute results of input tensors: a server-sent event for each, as MLServer has it."""
    deployment, info = begin(call)
    inference, writer = await read_request(call, deployment, info, await read_asked(call, deployment))
    if writer.binary:
        raise InferenceError("events are text: ask for the outputs of infer_stream without binary_data")

    async def events() -> AsyncIterator[bytes]:
        async for outputs in deployment.client.stream(inference):
            large = writer.is_large(outputs)
            head, _ = await off_loop(writer.write, outputs) if large else writer.write(outputs)
            yield head

    await send_events(call, events())
