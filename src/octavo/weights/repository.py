"""A model repository on Hugging Face."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.weights.json_file import read_json
from octavo.weights.sources import Progress, SourceError

_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    # Not "*.safetensors": some repositories hold the weights a second time under other names.
    "model*.safetensors",
    "model.safetensors.index.json",
]


@dataclass(frozen=True)
class Repository:
    """A repository by its id, "owner/name".

    The files go to Hugging Face's own cache, which other programs share; Octavo's cache holds a link to the snapshot,
    made when it is complete. So a later start need not ask, nor import, `huggingface_hub`. Without network that library
    takes a snapshot for what it could get; what is missing in it is found out here.
    """

    repo_id: str

    def __str__(self) -> str:
        return f"Hugging Face repository {self.repo_id}"

    @property
    def key(self) -> str:
        return self.repo_id.replace("/", "--")

    def cached(self, root: Path) -> Path | None:
        link = self._link(root)
        return link.resolve() if _missing(link) is None else None

    def fetch(self, root: Path, progress: Progress) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

        stage = f"downloading {self.repo_id}"
        progress(stage, 0, None)
        try:
            bar = _reporting_bar(stage, progress)
            folder = Path(snapshot_download(self.repo_id, allow_patterns=_FILES, tqdm_class=bar))
        except GatedRepoError as error:
            raise SourceError(
                f"its owner must grant access: ask at https://huggingface.co/{self.repo_id}, then set HF_TOKEN"
            ) from error
        except RepositoryNotFoundError as error:
            raise SourceError("no such repository, or a private one and no HF_TOKEN that may read it") from error
        except LocalEntryNotFoundError as error:
            raise SourceError("huggingface.co (or HF_ENDPOINT) cannot be reached") from error
        except ImportError as error:
            if "socks" not in str(error).lower():
                raise
            raise SourceError(
                "the environment names a SOCKS proxy (ALL_PROXY), for which `pip install socksio` is needed"
            ) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the network's
            # The library lets through whatever its HTTP client raises, which changes from release to release.
            raise SourceError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
            raise SourceError(
                "it has no config.json with model*.safetensors beside it; from a GGUF repository, "
                "download one file and give its path"
            )
        if (missing := _missing(folder)) is not None:
            raise SourceError(
                f"{missing} is missing: the repository lacks it, or only a part of it was fetched, and the rest "
                "cannot be had now (no network, or HF_HUB_OFFLINE)"
            )
        link = self._link(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        partial = link.with_name(f"{link.name}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(folder)
        os.replace(partial, link)
        return folder

    def _link(self, root: Path) -> Path:
        return root / "huggingface" / self.key


def _missing(folder: Path) -> str | None:
    """The first of the files a model cannot do without that is not in its folder."""
    wanted = ["config.json", "tokenizer.json"]
    if not (folder / "model.safetensors").is_file():
        index = "model.safetensors.index.json"
        if not (folder / index).is_file():
            return index
        try:
            weight_map = read_json(folder / index).get("weight_map")
        except CheckpointError:
            return f"a readable {index}"
        # What is wrong in a whole index is for the reader of checkpoints to say.
        files = weight_map.values() if isinstance(weight_map, dict) else ()
        wanted += sorted({name for name in files if isinstance(name, str)})
    return next((name for name in wanted if not (folder / name).is_file()), None)


def _reporting_bar(stage: str, progress: Progress) -> type[Any]:
    """A progress bar class for `huggingface_hub` that draws nothing and passes the byte counts on."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        # One download has several bars (bytes received, bytes written, files); the furthest byte count is reported.
        furthest = 0

        def __init__(self, *args: object, **kwargs: object) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            self.done = 0
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if self.counts_bytes and self.done > Bar.furthest:
                Bar.furthest = self.done
                progress(stage, self.done, self.total or None)

    return Bar
