"""Opening a model: a Hugging Face folder or a GGUF file becomes one `Checkpoint`, whatever it was."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.weights.gguf import read_gguf
from octavo.weights.gguf_config import config_from_gguf
from octavo.weights.gguf_tensors import canonical_tensors
from octavo.weights.safetensors import is_buffer, read_safetensors
from octavo.weights.tensor import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, opened: what is large stays on disk until it is asked for.

    Attributes:
        path: the folder or the .gguf file.
        config: what config.json says, or would say if there were one. `tie_word_embeddings` is true whenever there is
            no `lm_head.weight`.
        generation_config: what generation_config.json says; {} when there is none.
        tensors: Hugging Face's names -> tensors with Hugging Face's values, all linear weights [out, in], also GPT-2's.
            Each look-up makes the `Tensor` anew: views of the memory map, small copies where rows had to be reordered.
        gguf_metadata: for a GGUF file every key and its value as plain Python (arrays are lists), else None.
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    gguf_metadata: Mapping[str, Any] | None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder or a .gguf file, reading headers only.

    A folder with exactly one .gguf and no config.json counts as that file.

    Raises:
        CheckpointError: files are missing, truncated or corrupt.
        UnsupportedError: an architecture, tensor format or feature that is not supported.
    """
    if not path.is_dir():
        return _open_gguf(path)
    if (path / "config.json").is_file():
        return _open_folder(path)
    match sorted(path.glob("*.gguf")):
        case [only]:
            return _open_gguf(only)
        case []:
            raise CheckpointError(f"{path}: no model here: it has neither config.json nor a .gguf file")
        case several:
            raise CheckpointError(
                f"{path}: {len(several)} .gguf files here; name one of them: {', '.join(file.name for file in several)}"
            )


class _LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made when they are looked up."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _open_gguf(path: Path) -> Checkpoint:
    gguf = read_gguf(path)
    config = config_from_gguf(path, gguf.metadata, gguf.tensors)
    makers = canonical_tensors(path, gguf.metadata["general.architecture"], config, gguf.tensors)
    return Checkpoint(path, config, {}, _LazyTensors(makers), gguf.metadata)


def _open_folder(path: Path) -> Checkpoint:
    config = _read_json(path / "config.json")
    generation = path / "generation_config.json"
    tensors = _read_shards(path)
    if config.get("model_type") == "gpt2":
        tensors = {tensor.name: tensor for tensor in map(_canonical_gpt2, tensors.values())}
    if "lm_head.weight" not in tensors:
        if config.get("tie_word_embeddings") is False:
            raise CheckpointError(f"{path}: no 'lm_head.weight', though config.json says tie_word_embeddings is false")
        config["tie_word_embeddings"] = True
    return Checkpoint(path, config, _read_json(generation) if generation.is_file() else {}, tensors, None)


def _read_shards(path: Path) -> dict[str, Tensor]:
    """All tensors of the folder: from model.safetensors, or from the shards that the index names."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return read_safetensors(single)
    if not index.is_file():
        others = sorted(
            file.name for file in path.glob("*") if file.suffix in (".bin", ".pth", ".safetensors", ".gguf")
        )
        raise CheckpointError(
            f"{path}: neither {single.name} nor {index.name} here"
            + (f", but {', '.join(others)}; convert it to safetensors, or name a .gguf file" if others else "")
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map from tensor names to file names")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index}: {file!r} is not the name of a file beside it")
        if not (path / file).is_file():
            raise CheckpointError(f"{path}: {file}, which {index.name} lists, is missing; fetch the model again")
        tensors |= read_safetensors(path / file)
    if missing := sorted(name for name in weight_map if name not in tensors and not is_buffer(name)):
        raise CheckpointError(
            f"{path}: {missing[0]!r}, which {index.name} lists, is in no shard; fetch the model again"
        )
    return tensors


def _canonical_gpt2(tensor: Tensor) -> Tensor:
    """GPT-2's names with the prefix that some checkpoints leave out, its "Conv1D" weights turned from [in, out]."""
    name = tensor.name if tensor.name.startswith(("transformer.", "lm_head.")) else f"transformer.{tensor.name}"
    if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return replace(tensor, name=name, shape=tensor.shape[::-1], data=tensor.data.T)
    return replace(tensor, name=name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content
