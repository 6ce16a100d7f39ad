"""Other numbers of instances for a model of a repository: it goes on, and is not loaded a second time beside that."""

import asyncio
from collections.abc import Mapping
from pathlib import PurePath

from octavo.deployments.control import Entry
from octavo.deployments.entries import Entries, hosted_facts
from octavo.hosting.config import HostingConfig
from octavo.hosting.triton.layout import CONFIG_FILE, CONFIGS_FOLDER
from octavo.hosting.triton.resizing import processes_after
from octavo.worker.control import WorkerState


def same_files(before: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Whether a model's folder has the same files, but for configurations: each with when it was written last."""
    return _files(before) == _files(now)


def _files(stamps: Mapping[str, int]) -> dict[str, int]:
    return {
        file: written
        for file, written in stamps.items()
        if file != CONFIG_FILE and PurePath(file).parts[0] != CONFIGS_FOLDER
    }


async def resize(entries: Entries, served: Mapping[int, Entry], wanted: Mapping[int, HostingConfig]) -> bool:
    """Have a model go on with other instances, if nothing else is to be changed.

    Args:
        served: its versions. wanted: how they are to be served.

    Returns:
        Whether that is so; else it has to be loaded again.

    Raises:
        Refused: an instance cannot be started, and all is as it was.
    """
    if served.keys() != wanted.keys():
        return False
    processes: dict[int, int] = {}
    for version, entry in served.items():
        count = _processes(entries, entry, wanted[version])
        if count is None:
            return False
        processes[version] = count
    await asyncio.gather(
        *(entries.resize(entry, wanted[version], processes[version]) for version, entry in served.items())
    )
    return True


def _processes(entries: Entries, entry: Entry, config: HostingConfig) -> int | None:
    """How many processes a version has then; None if it has to be loaded again."""
    entry, status = entries.get(entry.worker) or entry, entries.status(entry)
    if entry.composed or entry.hosted is None or status.state is not WorkerState.READY:
        return None
    before = entry.hosted.hosting
    if before.repository is None or config.repository is None or before.model != config.model:
        return None
    concurrent = bool(hosted_facts(status)["concurrent"])
    return processes_after(before.repository.config, config.repository.config, concurrent=concurrent)
