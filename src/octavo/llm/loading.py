"""From a model's name to a model that answers."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from octavo.cli.console import fetch
from octavo.deployments import Deployment, Deployments, HostedDeployment
from octavo.deployments.hosted_settings import HostedSettings, expand, is_hosted, resolve_hosted
from octavo.deployments.loading import open_deployment
from octavo.deployments.resources import divide
from octavo.deployments.settings import DEPLOYMENT_SETTINGS, DeploymentSettings, resolve_deployment
from octavo.deployments.step_models import OfferedModels
from octavo.engine.local import LocalEngines
from octavo.errors import ConfigError
from octavo.hosting.caching_client import CachingClient
from octavo.hosting.local import LocalModels
from octavo.hosting.model_client import ModelClient
from octavo.hosting.response_cache import ResponseCache
from octavo.settings import from_table, require_known
from octavo.weights.hub import resolve

ModelLike = str | os.PathLike[str]
"""A short name, a Hugging Face repository id, a folder or a .gguf file."""

OwnCode = Callable[..., Any]
"""A class or function with `@octavo.model` or `@octavo.ensemble`."""

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


def hosted_settings(model: ModelLike | OwnCode, given: Mapping[str, Any]) -> HostedSettings | None:
    """The same of a model that is no language model; None if this is one.

    Raises:
        ConfigError: as `deployment_settings`; or code that no other process finds.
    """
    source = from_table({name: value for name, value in given.items() if value is not None}, "keyword argument ")
    if callable(model):
        from octavo.hosting.own import OwnModel
        from octavo.hosting.own_code import place_of

        own = OwnModel(model)
        settings, _ = resolve_hosted(own.name, place_of(model), source)
        here = tuple(map(os.path.abspath, sys.path))
        return replace(settings, hosting=replace(settings.hosting, search_path=here, runtime="python"))
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str) or not is_hosted(name, source):
        return None
    [one, *more] = expand(name)
    if more:
        raise ConfigError(f"{name} has several models: name each, {', '.join([one, *more])}")
    return resolve_hosted(None, one, source)[0]


@asynccontextmanager
async def running_hosted(
    found: Sequence[HostedSettings], offered: Deployments, cache: ResponseCache | None = None
) -> AsyncIterator[list[HostedDeployment]]:
    """Start hosted models, and stop them at the end of the context. They may still be loading.

    Args:
        offered: the models that they may ask. cache: where answers are kept; None keeps none.
    """
    if not found:
        yield []
        return
    async with LocalModels(OfferedModels(offered)) as models:
        clients: dict[str, ModelClient] = {each.name: models.start(each.name, each.hosting) for each in found}
        if cache is not None:
            clients = {name: CachingClient(client, cache, name) for name, client in clients.items()}
        yield [HostedDeployment.of(each, clients[each.name]) for each in found]
