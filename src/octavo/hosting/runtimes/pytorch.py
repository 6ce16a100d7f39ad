"""Files that PyTorch writes: TorchScript, exported programs, compiled packages, weights."""

import warnings
import zipfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.files import existing, library, unreadable
from octavo.hosting.runtimes.torch_exported import load_compiled, load_exported
from octavo.hosting.runtimes.torch_module import Callee, TorchRuntime, device_of, only_weights, plain
from octavo.hosting.runtimes.torch_script import load_script
from octavo.hosting.runtimes.torch_weights import load_pickle, load_safetensors

EXTRA = "torch"


class Content(Enum):
    """What such a file has in it, whatever its suffix says."""

    SCRIPT = "TorchScript"
    EXPORTED = "a program of torch.export"
    COMPILED = "a package of AOTInductor"
    PICKLE = "a pickle of torch.save"
    SAFETENSORS = "safetensors"


def content_of(path: Path) -> Content | None:
    """What is in a file; None if PyTorch did not write it."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Within one folder, but for exported programs of old versions.
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        with path.open("rb") as file:
            head = file.read(9)
        if path.suffix == ".safetensors" or head[8:] == b"{":
            return Content.SAFETENSORS
        return Content.PICKLE if head[:1] == b"\x80" else None
    if any(name.startswith("data/aotinductor/") for name in names):
        return Content.COMPILED
    if "serialized_exported_program.json" in names or any(name.startswith("models/") for name in names):
        return Content.EXPORTED
    if "constants.pkl" in names:
        return Content.SCRIPT
    return Content.PICKLE if "data.pkl" in names else None


_LOADERS: dict[Content, Callable[[Any, Path, RuntimeOptions, Any], Callee]] = {
    Content.SCRIPT: load_script,
    Content.EXPORTED: load_exported,
    Content.COMPILED: load_compiled,
    Content.PICKLE: load_pickle,
    Content.SAFETENSORS: load_safetensors,
}


def load_torch(path: Path, options: RuntimeOptions) -> TorchRuntime:
    """See `Loader`."""
    content = content_of(existing(path))
    if content is None:
        raise ConfigError(f"{path} is damaged, or nothing that PyTorch has written")
    torch = library("torch", path, EXTRA)
    device = device_of(torch, options)
    if options.threads:
        torch.set_num_threads(options.threads)
    with warnings.catch_warnings(), only_weights(options):
        warnings.simplefilter("ignore")  # that TorchScript should not be used any more, for one
        try:
            callee = _LOADERS[content](torch, path, options, device)
        except ConfigError:
            raise
        except Exception as error:  # PyTorch raises whatever its parsers do
            raise unreadable(path, f"PyTorch as {content.value}", plain(error)) from error
    return TorchRuntime(torch, device, callee)
