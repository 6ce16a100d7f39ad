"""Somebody's `TritonPythonModel`."""

import asyncio
import importlib
import inspect
import json
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from octavo.errors import ConfigError
from octavo.hosting.own_code import forget_doubtful_bytecode, refusal
from octavo.hosting.triton.python_backend import utils
from octavo.hosting.triton.python_backend.host import here
from octavo.hosting.triton.python_backend.model_config import ModelConfig
from octavo.hosting.triton.python_backend.request import IncomingRequest

log = logging.getLogger(__name__)

UTILS = "triton_python_backend_utils"
CLASS = "TritonPythonModel"


class PythonModel:
    """A model's class, and its object once it is initialized.

    Args:
        file: `<repository>/<model>/<version>/model.py`.

    Attributes:
        decoupled: whether requests may have any number of responses.
        wait: how an asynchronous `execute` is waited for.

    Raises:
        ConfigError: it cannot be imported, or has no such class.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        found = getattr(_import(file), CLASS, None)
        if found is None:
            raise ConfigError(f"{file} has no class {CLASS}")
        self._class: Any = found
        if not hasattr(self._class, "execute"):
            raise ConfigError(f"Python model {file} does not implement `execute` method.")
        self._instance: Any = None
        self._execute: Callable[[list[IncomingRequest]], Any] | None = None
        self._background: set[Future[Any]] = set()
        self.wait: Callable[[Future[Any]], object] = Future.exception
        self.decoupled = False

    def complete(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with what `auto_complete_config` adds. Raises ConfigError: it fails."""
        function = getattr(self._class, "auto_complete_config", None)
        if function is None:
            return config
        try:
            found = function(ModelConfig(json.dumps(config)))
        except (Exception, SystemExit) as error:
            raise refusal(f"auto_complete_config of {self._file} failed", error) from error
        if not isinstance(found, ModelConfig):
            raise ConfigError(
                f"auto_complete_config function in model '{config['name']}' must return a valid pb.ModelConfig object."
            )
        return found.as_dict()

    def initialize(self, arguments: dict[str, str]) -> None:
        """Make the model. Raises ConfigError: it fails."""
        try:
            self._instance = self._class()
            if hasattr(self._instance, "initialize"):
                self._instance.initialize(arguments)
        except (Exception, SystemExit) as error:
            raise refusal(f"{self._file} cannot be loaded", error) from error
        self._execute = self._instance.execute

    def call(self, requests: list[IncomingRequest], fail: Callable[[BaseException], None]) -> Any:
        """What `execute` returns, or what comes of it if it is asynchronous; of a decoupled one it is not waited for.

        Raises whatever its code does.

        Args:
            fail: called if it does so when nobody waits for it.
        """
        assert self._execute is not None, "initialize it first"
        returned = self._execute(requests)
        if not inspect.iscoroutine(returned):
            return returned
        future = self.run(returned)
        if self.decoupled:
            self._background.add(future)
            future.add_done_callback(partial(self._ended, fail))
            return None
        self.wait(future)
        return future.result()

    def _ended(self, fail: Callable[[BaseException], None], future: "Future[Any]") -> None:
        self._background.discard(future)
        if future.cancelled():
            fail(RuntimeError("its code was cancelled"))
        elif (error := future.exception()) is not None:
            fail(error)

    def finalize(self) -> None:
        """Let the model end what it has begun."""
        if hasattr(self._instance, "finalize"):
            try:
                self._instance.finalize()
            except (Exception, SystemExit):
                log.exception("finalize failed")

    @property
    def checks_readiness(self) -> bool:
        """Whether it wants to be asked whether it is ready."""
        return hasattr(self._instance, "is_ready")

    def is_ready(self) -> bool:
        """What it says. Raises whatever its code does."""
        found = self._instance.is_ready()
        if inspect.iscoroutine(found):
            found = self.run(found).result()
        if not isinstance(found, bool):
            raise TypeError(f"is_ready returned a {type(found).__name__}, and must return True or False")
        return found

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Run a coroutine in the model's event loop, which goes on between requests."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def runs_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that is its event loop."""
        return self.__dict__.get("_loop") is loop

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="event loop", daemon=True).start()
        return loop


def _import(file: Path) -> ModuleType:
    """A model's module, as Triton imports it: `1.model`, beside which it finds others, as `1.other` and as `other`."""
    sys.modules[UTILS] = utils
    here.folder = str(file.parent)
    sys.path += [str(file.parent), str(file.parent.parent)]
    forget_doubtful_bytecode(file.parent)
    sys.argv[:] = [""]  # what this process was told is nothing to the model's code, which may look there
    try:
        return importlib.import_module(f"{file.parent.name}.{file.stem}")
    except (Exception, SystemExit) as error:
        raise refusal(f"{file} cannot be imported", error) from error
