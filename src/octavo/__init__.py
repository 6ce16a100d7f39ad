"""Octavo serves AI models at scale from one small, readable code base.

    from octavo import LLM, SamplingParams

    with LLM("smollm2:135m") as llm:
        print(llm.chat([{"role": "user", "content": "Name three rivers."}])[0].text)

What is named here is imported at first use, so that `import octavo` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.errors import InvalidRequest, OctavoError
    from octavo.hosting.decorators import ensemble, model
    from octavo.hosting.errors import InferenceError
    from octavo.hosting.steps import Model
    from octavo.llm.app import Application, create_app
    from octavo.llm.generation import BatchError
    from octavo.llm.llm import LLM
    from octavo.llm.outputs import CompletionOutput, Logprob, RequestOutput, StreamChunk, Usage
    from octavo.llm.params import SamplingParams, StructuredOutputsParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Application",
    "BatchError",
    "CompletionOutput",
    "InferenceError",
    "InvalidRequest",
    "Logprob",
    "Model",
    "OctavoError",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "StructuredOutputsParams",
    "Usage",
    "create_app",
    "ensemble",
    "model",
]

_HOMES = {
    "LLM": "octavo.llm.llm",
    "Application": "octavo.llm.app",
    "BatchError": "octavo.llm.generation",
    "CompletionOutput": "octavo.llm.outputs",
    "InferenceError": "octavo.hosting.errors",
    "InvalidRequest": "octavo.errors",
    "Logprob": "octavo.llm.outputs",
    "Model": "octavo.hosting.steps",
    "OctavoError": "octavo.errors",
    "RequestOutput": "octavo.llm.outputs",
    "SamplingParams": "octavo.llm.params",
    "StreamChunk": "octavo.llm.outputs",
    "StructuredOutputsParams": "octavo.llm.params",
    "Usage": "octavo.llm.outputs",
    "create_app": "octavo.llm.app",
    "ensemble": "octavo.hosting.decorators",
    "model": "octavo.hosting.decorators",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
