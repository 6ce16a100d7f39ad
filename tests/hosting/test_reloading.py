"""Watching the files of code."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from octavo.deployments import reloading
from octavo.deployments.manager import DeploymentManager


class Manager:
    """Is busy with something else, so many times."""

    def __init__(self, file: Path, busy: int) -> None:
        self._sources = {str(file): file.stat().st_mtime}
        self._busy = busy
        self.reloaded = asyncio.Event()

    def sources(self) -> dict[str, dict[str, float]]:
        return {"model v1": self._sources}

    async def reload(self, worker: str) -> bool:
        self._busy -= 1
        if self._busy >= 0:
            return False
        assert not self.reloaded.is_set()
        self.reloaded.set()
        return True


def test_a_change_is_not_lost_when_something_else_is_being_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "WATCH_SECONDS", 0.0)
    file = tmp_path / "app.py"
    file.write_text("first")

    async def scenario() -> None:
        manager = Manager(file, busy=3)
        file.unlink()  # as editors do, which write another file in its place
        watching = asyncio.create_task(reloading.reload_when_changed(cast(DeploymentManager, manager)))
        await asyncio.wait_for(manager.reloaded.wait(), 30)
        for _ in range(10):  # and loaded once
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(scenario())
