"""Whether an ensemble of a repository fits the models that it asks: before it is offered, for whoever loads it."""

from collections.abc import Callable, Mapping

import msgspec

from octavo.deployments.control import Entry
from octavo.deployments.hosted_settings import HostedSettings
from octavo.hosting.ensemble import LATEST
from octavo.hosting.ensemble_graph import Graph
from octavo.hosting.info import HostedInfo
from octavo.hosting.triton.ensembles import ensemble_from
from octavo.worker.control import WorkerStatus


def ensemble_info(
    settings: HostedSettings, offered: Mapping[str, Mapping[int, Entry]], status: Callable[[Entry], WorkerStatus]
) -> HostedInfo | None:
    """An ensemble as a model; None if it asks others than hosted models, of which nothing is known here.

    Args:
        offered: the models of the repository, by name and version. status: of the process of one.

    Raises:
        ConfigError: its models do not fit together.
    """
    assert settings.hosting.repository is not None
    ensemble = ensemble_from(settings.hosting.repository, settings.name)
    infos: list[HostedInfo] = []
    for step in ensemble.steps:
        versions = offered.get(step.model, {})
        entry = versions.get(max(versions, default=LATEST) if step.version == LATEST else step.version)
        if entry is None or entry.hosted is None:
            return None
        if entry.composed:
            info = ensemble_info(entry.hosted, offered, status)
        else:
            info = msgspec.json.decode(status(entry).payload, type=HostedInfo)
        if info is None:
            return None
        infos.append(info)
    return Graph(ensemble, infos).info
