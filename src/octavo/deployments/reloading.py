"""Loading code again when its files change."""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from octavo.deployments.manager import DeploymentManager

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5


async def reload_when_changed(manager: DeploymentManager) -> None:
    """Watch the files of all code that is to be loaded again, for ever."""
    seen: dict[str, dict[str, float]] = {}
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        for worker, loaded in manager.sources().items():
            times = _times(loaded)
            if seen.setdefault(worker, loaded) != times:
                try:
                    if await manager.reload(worker):
                        seen[worker] = times
                except Exception:  # a defect of ours is no reason to watch no more
                    seen[worker] = times
                    log.exception("cannot load %s again", worker)


def _times(files: Iterable[str]) -> dict[str, float]:
    """When files were written last; those that are being replaced are missing."""
    found = {}
    for file in files:
        try:
            found[file] = Path(file).stat().st_mtime
        except OSError:
            continue
    return found
