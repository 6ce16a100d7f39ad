"""POST /generate: what people write around a model with a few lines of FastAPI."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import orjson
from pydantic import Field

from octavo.deployments.choice import Delta
from octavo.deployments.generation import Generation
from octavo.deployments.request import GenerationRequest, RawPrompts, Stops
from octavo.server.dialects.dialect import Dialect, Writer
from octavo.server.errors import ApiError, error_message, error_responses
from octavo.server.schema.sampling import SamplingBody, StopList

DONE = b"data: [DONE]\n\n"


class GenerateRequest(SamplingBody):
    """POST /generate"""

    moved: ClassVar = {
        "inputs": ("prompt",),
        "max_completion_tokens": ("max_tokens",),
        "max_new_tokens": ("max_tokens",),
        "max_output_tokens": ("max_tokens",),
        "stop_sequences": ("stop",),
        "text_input": ("prompt",),
    }

    prompt: str
    model: str = Field("", description="A name from /v1/models; the server's first model if absent.")
    max_tokens: int = Field(128, ge=1)
    stop: StopList = Field([])
    stream: bool = Field(False, description='Server-sent events, `{"text": …}` with a piece each, then `[DONE]`.')


class GenerateWriter(Writer):
    """Writes `{"text": …}`."""

    def events(self, delta: Delta) -> bytes:
        """A piece of the text."""
        return b'data: {"text":%b}\n\n' % orjson.dumps(delta.text) if delta.text else b""

    def end(self) -> bytes:
        """The end."""
        return DONE

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The error, and the end."""
        return b'data: {"detail":%b}\n\n%b' % (orjson.dumps(error_message(error)), DONE)

    def whole(self, choices: Sequence[Delta]) -> Iterator[bytes]:
        """The whole text."""
        yield orjson.dumps({"text": choices[0].text})


def _object(member: str) -> dict[str, object]:
    return {"type": "object", "required": [member], "properties": {member: {"type": "string"}}}


class Generate(Dialect[GenerateRequest]):
    """Continue a prompt."""

    path = "/generate"
    tag = "Generate"
    body = GenerateRequest
    responses: ClassVar = {
        200: {"description": "The text.", "content": {"application/json": {"schema": _object("text")}}},
        **error_responses(_object("detail")),
    }

    def parse(self, body: GenerateRequest) -> GenerationRequest:
        """The request in no API's words."""
        return GenerationRequest(
            prompt=RawPrompts(prompts=[body.prompt]),
            model=body.model,
            stream=body.stream,
            max_tokens=body.max_tokens,
            min_tokens=body.min_tokens,
            sampling=body.sampling(),
            constraint=body.constraint(),
            timeout=body.timeout,
            stops=Stops(strings=body.stop, end_of_turn=not body.ignore_eos),
        )

    def writer(self, body: GenerateRequest, generation: Generation) -> GenerateWriter:
        """What writes the answer."""
        return GenerateWriter()

    def error(self, error: ApiError, request_id: str) -> bytes:
        """FastAPI's shape."""
        return orjson.dumps({"detail": error_message(error)})
