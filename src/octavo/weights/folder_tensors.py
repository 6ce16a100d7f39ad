"""From a folder's safetensors to one name for each weight, under whichever of its names it was saved."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import CheckpointError
from octavo.weights.tensor import Tensor

_HEAD = "lm_head.weight"

# The language model of models that also take images: "language_model.model." as transformers 4 saved it,
# "model.language_model." as 5 does. Some checkpoints of the body alone have no prefix at all.
_DECODER = re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?((?:embed_tokens|layers|norm)\..+)")


@dataclass(frozen=True)
class FolderTensors:
    """Tensors under their canonical names.

    Attributes:
        tensors: linear weights are [out, in].
        tied: whether the embeddings are also the head; None where the config's word is no truth value.
        notes: what whoever serves the model should know, a sentence each.
    """

    tensors: dict[str, Tensor]
    tied: bool | None
    notes: tuple[str, ...]


def canonical_tensors(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FolderTensors:
    """Name the tensors of a folder, and find its head, as transformers does.

    Args:
        path: the folder, for messages.
        config: its config.json: the model type, and whether the embeddings are tied to the head.
        tensors: as its files name them.

    Raises:
        CheckpointError: two tensors are the same weight, or the head that the config promises is missing.
    """
    is_gpt2 = config.get("model_type") == "gpt2"
    canonical: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for tensor in tensors.values():
        renamed = _gpt2(tensor) if is_gpt2 else replace(tensor, name=_decoder_name(tensor.name))
        other = origins.setdefault(renamed.name, tensor.name)
        if other != tensor.name:
            raise CheckpointError(f"{path}: {other!r} and {tensor.name!r} are both the weight {renamed.name!r}")
        canonical[renamed.name] = renamed
    return _find_head(path, config.get("tie_word_embeddings"), canonical, is_gpt2)


def _decoder_name(name: str) -> str:
    if match := _DECODER.fullmatch(name):
        return f"model.{match[1]}"
    return name.removeprefix("language_model.") if name.startswith("language_model.lm_head.") else name


def _gpt2(tensor: Tensor) -> Tensor:
    """GPT-2's names with the prefix that some checkpoints leave out, its "Conv1D" weights turned from [in, out]."""
    name = tensor.name if tensor.name.startswith(("transformer.", "lm_head.")) else f"transformer.{tensor.name}"
    if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return replace(tensor, name=name, shape=tensor.shape[::-1], data=tensor.data.T)
    return replace(tensor, name=name)


def _find_head(path: Path, says: Any, tensors: dict[str, Tensor], is_gpt2: bool) -> FolderTensors:
    """What is there counts, not what the config says of it: a head that differs from the embeddings is used."""
    table = "transformer.wte.weight" if is_gpt2 else "model.embed_tokens.weight"
    head, embeddings = tensors.get(_HEAD), tensors.get(table)
    if head is None:
        if says is False:
            raise CheckpointError(f"{path}: no {_HEAD!r}, though config.json says tie_word_embeddings is false")
        return FolderTensors(tensors, True, ())
    if says not in (None, True):
        return FolderTensors(tensors, False if says is False else None, ())
    if embeddings is None or _equal(head, embeddings):
        del tensors[_HEAD]
        return FolderTensors(tensors | {table: replace(head, name=table)}, True, ())
    note = (
        f"{path}: config.json says tie_word_embeddings is true, but {_HEAD} differs from {table}: it is used as the "
        "head (with false in config.json this is not said)"
    )
    return FolderTensors(tensors, False, (note,) if says else ())


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same elements."""
    if (one.shape, one.format) != (other.shape, other.format):
        return False
    return np.array_equal(one.data, other.data)
