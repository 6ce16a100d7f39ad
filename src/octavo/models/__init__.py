"""Model families: from a checkpoint's config to a graph.

A family is a function over a `GraphBuilder` and a reader for its config. Adding one takes a file and a line here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import UnsupportedError
from octavo.graph.builder import GraphBuilder, Value
from octavo.graph.ops import Graph
from octavo.models.gemma3 import gemma3, read_gemma3
from octavo.models.gpt2 import gpt2, read_gpt2
from octavo.models.llama import llama, read_llama, read_mistral, read_qwen2, read_qwen3
from octavo.models.settings import Settings


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of a language model before its graph is built.

    Attributes:
        vocab_size: width of the logits; token ids are below it.
        max_position_embeddings: tokens in the longest sequence that the model was made for.
    """

    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class Model:
    """A language model as a graph, from tokens to logits, and its sizes."""

    graph: Graph
    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How a config is read, and the function that makes a graph of what was read.

    Models that also take images have their language model in a section of the config.
    """

    model_type: str
    read: Callable[[Settings], Any]
    family: Callable[[GraphBuilder, Any], Value]
    section: str | None = None


_ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture("llama", read_llama, llama),
    "MistralForCausalLM": _Architecture("mistral", read_mistral, llama),
    "Qwen2ForCausalLM": _Architecture("qwen2", read_qwen2, llama),
    "Qwen3ForCausalLM": _Architecture("qwen3", read_qwen3, llama),
    "Gemma3ForCausalLM": _Architecture("gemma3_text", read_gemma3, gemma3),
    "Gemma3ForConditionalGeneration": _Architecture("gemma3", read_gemma3, gemma3, "text_config"),
    "GPT2LMHeadModel": _Architecture("gpt2", read_gpt2, gpt2),
}


def build(config: Mapping[str, Any], source: str = "config") -> Model:
    """The model that a config.json describes, of transformers 4 or 5, or the same made of a GGUF file's metadata.

    Args:
        config: what the file says.
        source: the file's path, for messages.

    Raises:
        UnsupportedError: an architecture or a feature that is not implemented.
        CheckpointError: a value in the config is missing or cannot be.
    """
    architecture, parsed = _parse(config, source)
    g = GraphBuilder()
    graph = g.finish(architecture.family(g, parsed))
    return Model(graph, parsed.vocab_size, parsed.max_position_embeddings)


def read_sizes(config: Mapping[str, Any], source: str = "config") -> Sizes:
    """What `build` says of a model's sizes, at once, for every family. Raises as `build` does."""
    _, parsed = _parse(config, source)
    return Sizes(parsed.vocab_size, parsed.max_position_embeddings)


def _parse(config: Mapping[str, Any], source: str) -> tuple[_Architecture, Any]:
    settings = Settings(config, source)
    architecture = _find(settings)
    if method := settings.section("quantization_config").get("quant_method"):
        raise UnsupportedError(
            f"{source}: weights quantised with {method!r:.80} are not supported; "
            "use the unquantised model or a GGUF file"
        )
    if architecture.section is not None:  # whose own word on the head does not count
        tied = {"tie_word_embeddings": settings.flag("tie_word_embeddings", True)}
        settings = settings.section(architecture.section).over({}, tied)
    return architecture, architecture.read(settings)


def _find(settings: Settings) -> _Architecture:
    """By the names under `architectures`; the model type decides for a config that has none."""
    names, model_type = settings.get("architectures", []), settings.get("model_type")
    if not isinstance(names, list):
        raise settings.wrong("architectures", "a list of names")
    for name, architecture in _ARCHITECTURES.items():
        if name in names or (not names and architecture.model_type == model_type):
            return architecture
    wanted = f"{names[0]!r:.80}" if names else f"of model type {model_type!r:.80}"
    raise UnsupportedError(
        f"{settings.source}: architecture {wanted} is not supported; supported: {', '.join(_ARCHITECTURES)}"
    )
