"""Opening a model: a Hugging Face folder or a GGUF file becomes one `Checkpoint`, whatever it was."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.weights import folder_tensors, gguf_tensors
from octavo.weights.gguf import read_gguf
from octavo.weights.gguf_config import config_from_gguf
from octavo.weights.json_file import read_json
from octavo.weights.safetensors import is_buffer, read_safetensors
from octavo.weights.tensor import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, opened: what is large stays on disk until it is asked for.

    Attributes:
        path: the folder or the .gguf file.
        config: what config.json says, or would say if there were one. `tie_word_embeddings` is what the tensors say:
            true if there is no `lm_head.weight`, or only a copy of the embeddings (which is left out).
        generation_config: what generation_config.json says; {} when there is none.
        tensors: Hugging Face's names -> tensors with Hugging Face's values, all linear weights [out, in], also GPT-2's.
            Each look-up makes the `Tensor` anew: views of the memory map, small copies where rows had to be reordered.
        gguf_metadata: for a GGUF file every key and its value as plain Python (arrays are lists), else None.
        notes: what whoever serves the model should know of its files, a sentence each.
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    gguf_metadata: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def config_file(self) -> Path:
        """Where `config` was read."""
        return self.path if self.gguf_metadata is not None else self.path / "config.json"


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
    makers = gguf_tensors.canonical_tensors(path, gguf.metadata["general.architecture"], config, gguf.tensors)
    return Checkpoint(path, config, {}, _LazyTensors(makers), gguf.metadata)


def _open_folder(path: Path) -> Checkpoint:
    config = read_json(path / "config.json")
    generation = path / "generation_config.json"
    found = folder_tensors.canonical_tensors(path, config, _read_shards(path))
    if found.tied is not None:
        config["tie_word_embeddings"] = found.tied
    generation_config = read_json(generation) if generation.is_file() else {}
    return Checkpoint(path, config, generation_config, found.tensors, None, found.notes)


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
    weight_map = read_json(index).get("weight_map")
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
