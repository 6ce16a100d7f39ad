"""Real engines in processes of their own, for tests of what becomes of requests when these die."""

import asyncio
import os
import signal
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.engine.client import EngineClient, EngineState, OutputStream
from octavo.engine.config import EngineConfig
from octavo.engine.launch import engine_spec
from octavo.engine.local import LocalEngines
from octavo.engine.request import Request, SamplingParams
from octavo.worker.control import WorkerStatus
from octavo.worker.supervisor import RestartPolicy

NAME = "tiny"
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Engine:
    """An engine that is ready, and its client."""

    client: EngineClient
    engines: LocalEngines

    @property
    def status(self) -> WorkerStatus:
        return self.engines.supervisor.status(NAME)

    def signal(self, number: signal.Signals) -> None:
        pid = self.status.pid
        assert pid is not None
        os.kill(pid, number)

    async def kill(self) -> None:
        """Kill the process; returns when that is known."""
        self.signal(signal.SIGKILL)
        await until(lambda: self.client.state is not EngineState.READY)


def config(model: Path, **settings: object) -> EngineConfig:
    """Small, so that it starts at once."""
    defaults = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 2**20}
    return EngineConfig(model=str(model), **(defaults | settings))  # type: ignore[arg-type]


@asynccontextmanager
async def running(
    model: Path, *, module: str | None = None, policy: RestartPolicy | None = None, **settings: object
) -> AsyncIterator[Engine]:
    """An engine that is ready, ended afterwards. `module` is run in place of the engine's own."""
    async with LocalEngines(policy=policy) as engines:
        spec = engine_spec(NAME, config(model, **settings))
        if module is not None:
            spec = replace(spec, module=module, environment={**spec.environment, "PYTHONPATH": str(REPOSITORY)})
        client = engines.start_worker(spec)
        await asyncio.wait_for(client.ready(), 30)
        yield Engine(client, engines)


async def collect(stream: OutputStream, found: dict[int, list[int]] | None = None) -> dict[int, list[int]]:
    """Everything the stream still brings, added to what is `found` already."""
    found = {} if found is None else found
    async for outputs in stream:
        for output in outputs:
            found.setdefault(output.index, []).extend(output.token_ids)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that other processes bring about."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def request(name: str, prompt: tuple[int, ...] = (5, 6, 7, 8), **params: object) -> Request:
    """A short prompt, and how to go on."""
    return Request(request_id=name, prompt_token_ids=array("i", prompt), params=SamplingParams(**params))  # type: ignore[arg-type]


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test that is a coroutine, for two minutes at most."""
    asyncio.run(asyncio.wait_for(test(), 120))  # type: ignore[arg-type]
