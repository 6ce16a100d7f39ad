"""Loading and unloading the models of a repository, as Triton's extension has it."""

import binascii
import shutil
import tempfile
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.deployments.control import NOT_CONTROLLED, Administer, LoadModel, UnloadModel, Wish
from octavo.hosting.errors import Code, InferenceError
from octavo.server.offload import off_loop

FILE = "file:"
"""How the names of parameters begin that are files."""

_CODES = {404: Code.NOT_FOUND, 503: Code.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class LoadParameters:
    """What a client wants instead of what is in the repository.

    Attributes:
        config: a `ModelConfig` as JSON. files: by their places in the model's folder.
    """

    config: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def read_parameters(parameters: Mapping[str, Any]) -> LoadParameters:
    """The parameters of a request; files are bytes, or text in base 64. Raises InferenceError: they are none."""
    config = None
    files = {}
    for name, value in parameters.items():
        if name == "config":
            if not isinstance(value, str):
                raise InferenceError("Config parameter 'config' must have string type for its value")
            config = value
        elif name.startswith(FILE):
            files[name.removeprefix(FILE)] = _content(name, value)
        else:
            raise InferenceError(f"Unrecognized load parameter '{name:.100}'; there are config and file:PATH")
    if files and config is None:
        raise InferenceError("Load parameter 'config' must be specified for model file override")
    return LoadParameters(config, files)


async def load_model(administer: Administer | None, name: str, parameters: LoadParameters) -> None:
    """Load a model, or load it again. Raises InferenceError: it cannot be; what was served is still."""
    folder = await off_loop(_written, parameters.files) if parameters.files else None
    await _control(administer, LoadModel(name=name, config=parameters.config, folder=folder), folder)


async def unload_model(administer: Administer | None, name: str, *, dependents: bool) -> None:
    """Offer a model no longer. Raises InferenceError: clients do not control this repository."""
    await _control(administer, UnloadModel(name=name, dependents=dependents))


class ModelsOwn:
    """Has models load and unload others. As `octavo.hosting.calls.Repository`."""

    def __init__(self, administer: Administer) -> None:
        self._administer = administer

    async def load(self, name: str, parameters: Mapping[str, str | bytes]) -> None:
        """Load a model. Raises InferenceError: it cannot be."""
        await load_model(self._administer, name, read_parameters(parameters))

    async def unload(self, name: str, *, dependents: bool) -> None:
        """Unload a model. Raises InferenceError: it cannot be."""
        await unload_model(self._administer, name, dependents=dependents)


async def _control(administer: Administer | None, wish: Wish, folder: str | None = None) -> None:
    if administer is None:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise InferenceError(NOT_CONTROLLED, Code.UNAVAILABLE)
    await fulfil(administer, wish)


async def fulfil(administer: Administer, wish: Wish) -> None:
    """Have the supervisor do something. Raises InferenceError: it does not, and why."""
    outcome = await administer(wish)
    if outcome.error is not None:
        raise InferenceError(outcome.error, _CODES.get(outcome.status, Code.INVALID_ARGUMENT))


def _content(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return b64decode(value, validate=True) if isinstance(value, str) else _no_file(name)
    except binascii.Error:
        return _no_file(name)


def _no_file(name: str) -> bytes:
    raise InferenceError(
        f"File parameter '{name:.100}' must have bytes type for its value, in base 64 where it is JSON"
    )


def _written(files: Mapping[str, bytes]) -> str:
    """A folder with files. Raises InferenceError: one of them would be elsewhere."""
    folder = Path(tempfile.mkdtemp(prefix="octavo-model-")).resolve()
    try:
        for name, data in files.items():
            _write(folder, name, data)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return str(folder)


def _write(folder: Path, name: str, data: bytes) -> None:
    try:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder) or file == folder:
            raise InferenceError(f"Invalid file parameter '{FILE}{name:.200}' must stay within model directory.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InferenceError(f"Invalid file parameter '{FILE}{name:.200}': {why}") from None
