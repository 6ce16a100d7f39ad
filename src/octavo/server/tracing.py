"""A frontend's part in tracing: which of its requests are traced, and how traces get into files."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

import orjson

from octavo.deployments.trace_files import TraceState
from octavo.deployments.trace_settings import TraceSetting, Tracing
from octavo.hosting.trace import Trace
from octavo.server.offload import off_loop

log = logging.getLogger("octavo.server")

TOGETHER_SECONDS = 0.02
"""Traces that end so soon after others are written with them."""

MOST_WAITING = 4096
"""Traces that are not written yet: a disk that is slow costs traces, and no memory."""


class Tracer:
    """Decides, collects and writes.

    Attributes:
        on: whether any request is traced. Where it is false, that is all that a request is asked.
    """

    def __init__(self) -> None:
        self.on = False
        self.tracing = Tracing()
        self._state: TraceState | None = None
        self._seen: dict[int, int] = {}
        self._ended: deque[tuple[TraceSetting, Trace]] = deque()
        self._writing: asyncio.Task[None] | None = None

    def apply(self, tracing: Tracing) -> None:
        """Do as the supervisor says from now on."""
        if tracing.state and self._state is None:
            self._state = TraceState(tracing.state)
        self.tracing = tracing
        self._seen = {each.number: self._seen.get(each.number, 0) for each in tracing.settings}
        self.on = self._state is not None and any(each.traces for each in tracing.settings)

    def left(self, setting: TraceSetting) -> int:
        """How many requests a setting may still trace; -1 for any number."""
        return setting.count if self._state is None else self._state.left(setting)

    def begin(self, model: str) -> Trace | None:
        """The trace of a request for a model, if this one is traced. It is held until its client has been answered."""
        setting = self.tracing.of(model)
        if not setting.traces or self._state is None:
            return None
        seen = self._seen[setting.number] = self._seen[setting.number] + 1
        if seen % setting.rate or len(self._ended) >= MOST_WAITING:
            return None
        if setting.count >= 0 and not self._state.take(setting):
            return None
        return Trace(setting.levels, lambda trace: self._end(setting, trace))

    def _end(self, setting: TraceSetting, trace: Trace) -> None:
        assert self._state is not None
        if not trace.began:  # refused before any model had to do with it
            if setting.count >= 0:
                self._state.give_back(setting)
            return
        self._ended.append((setting, trace))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    async def _write_soon(self) -> None:
        try:
            while self._ended:
                await asyncio.sleep(TOGETHER_SECONDS)
                ended, self._ended = self._ended, deque()
                await off_loop(self._write, ended)
        finally:
            self._writing = None

    def _write(self, ended: Sequence[tuple[TraceSetting, Trace]]) -> None:
        assert self._state is not None
        file = self.tracing.file
        first = self._state.numbers(sum(len(trace.spans) for _, trace in ended))
        by_setting: dict[TraceSetting, list[bytes]] = {}
        for setting, trace in ended:
            by_setting.setdefault(setting, []).append(orjson.dumps(list(trace.entries(first)))[1:-1])
            first += len(trace.spans)
        for setting, traces in by_setting.items():
            try:
                self._state.write(file, setting, traces)
            except OSError as error:
                log.error("%d traces cannot be written to %s: %s", len(traces), file, error.strerror)

    async def close(self) -> None:
        """Write what has ended, and trace no more."""
        self.on = False
        if self._writing is not None:
            await self._writing
        if self._state is not None:
            self._state.close()
            self._state = None
