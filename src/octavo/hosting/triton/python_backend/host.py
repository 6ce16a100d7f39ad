"""What a model reaches from within its code: other models, and the server. There is one model in a process."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from octavo.hosting.triton.python_backend.errors import TritonModelException

if TYPE_CHECKING:
    from octavo.hosting.triton.python_backend.request import InferenceRequest


class Host(Protocol):
    """Has the model computed."""

    def execute(self, request: "InferenceRequest", *, decoupled: bool) -> Any:
        """Ask another model, and wait. See `InferenceRequest.exec`."""
        ...

    def execute_async(self, request: "InferenceRequest", *, decoupled: bool) -> "asyncio.Future[Any]":
        """The same, in the running event loop."""
        ...

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether another model can be asked."""
        ...

    def load_model(self, name: str, config: str, files: Mapping[str, bytes]) -> None:
        """Load a model of the repository. Raises TritonModelException."""
        ...

    def unload_model(self, name: str, *, unload_dependents: bool) -> None:
        """Unload a model. Raises TritonModelException."""
        ...


class _Here:
    """Attributes: host: what has the model computed, once it is loaded. folder: of the model's file."""

    host: Host | None = None
    folder = ""


here = _Here()


def required() -> Host:
    """What has the model computed. Raises TritonModelException: it is still loading."""
    if here.host is None:
        raise TritonModelException("BLS is only supported during the 'execute' function.")
    return here.host


def get_model_dir() -> str:
    """The folder of the model's version."""
    return here.folder


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model can be asked; the newest version, if none is named."""
    return required().is_model_ready(model_name, model_version)


def load_model(model_name: str, config: str = "", files: Mapping[str, bytes] | None = None) -> None:
    """Load a model of the repository, which takes until it is loaded.

    Args:
        config: as JSON, instead of the one in the repository. files: by their paths behind "file:", instead of those.

    Raises:
        TritonModelException: it cannot be loaded.
    """
    required().load_model(model_name, config, files or {})


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unload a model. Raises TritonModelException: it cannot be."""
    required().unload_model(model_name, unload_dependents=unload_dependents)
