"""From a model's name to a model that answers."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from octavo.cli.console import fetch
from octavo.deployments import Deployment
from octavo.deployments.loading import open_deployment
from octavo.deployments.resources import divide
from octavo.deployments.settings import DEPLOYMENT_SETTINGS, DeploymentSettings, resolve_deployment
from octavo.engine.local import LocalEngines
from octavo.errors import ConfigError
from octavo.settings import from_table, require_known
from octavo.weights.hub import resolve

ModelLike = str | os.PathLike[str]
"""A short name, a Hugging Face repository id, a folder or a .gguf file."""

REPORT_SECONDS = 0.1
"""Between two reports of how far loading is."""


def deployment_settings(model: ModelLike, given: Mapping[str, Any]) -> DeploymentSettings:
    """A deployment's settings from keyword arguments, which have the flags' names; None leaves one to its default.
    They are checked as far as they can be without the model.

    Raises:
        ConfigError: what can be no model, an unknown name, or a value that cannot work.
    """
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"a model is a name, or the path of a folder or file, not {model!r:.80}")
    require_known(given, DEPLOYMENT_SETTINGS, "the setting ")
    table = {name: value for name, value in given.items() if value is not None}
    settings, _ = resolve_deployment(None, name, from_table(table, "keyword argument "))
    return settings


def find(settings: DeploymentSettings, *, progress: bool | None = None) -> DeploymentSettings:
    """Find a model's files on this machine, or fetch them. Raises OctavoError.

    Args:
        progress: False says nothing about it.
    """
    return settings.located(resolve(settings.model) if progress is False else fetch(settings.model))


async def ready(deployment: Deployment, report: Callable[[int, int], None]) -> None:
    """Wait until a model takes requests; `report` is called with (weights loaded, weights in all) meanwhile.

    Raises:
        EngineFailed: it never will.
    """
    loading = asyncio.create_task(deployment.engine.ready())
    try:
        while not loading.done():
            await asyncio.wait({loading}, timeout=REPORT_SECONDS)
            report(*deployment.engine.load_progress)
        loading.result()
    finally:
        loading.cancel()


@asynccontextmanager
async def running(found: Sequence[DeploymentSettings], *, in_process: bool) -> AsyncIterator[list[Deployment]]:
    """Start engines, and stop them at the end of the context. They may still be loading.

    Raises:
        OctavoError: a model's files cannot be read, or all together do not fit.
    """
    async with LocalEngines(on_threads=in_process) as engines:
        divided = await asyncio.to_thread(divide, found)
        clients = [engines.start(each.name, each.engine, stall_timeout=each.stall_timeout) for each in divided]
        opened = [await asyncio.to_thread(open_deployment, *pair) for pair in zip(divided, clients, strict=True)]
        try:
            yield opened
        finally:
            for deployment in opened:
                deployment.grammars.close()
