"""Several frontends of one engine: each gets its own, and one that is gone or held up loses nothing that others have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from octavo.engine.client import EngineClient, EngineState
from tests.worker.engines import Engine, collect, request, run, running, until


@asynccontextmanager
async def frontend(engine: Engine, lease_seconds: float = 10.0) -> AsyncIterator[EngineClient]:
    """One more client of the same engine; it goes without a word."""
    client = EngineClient(lease_seconds=lease_seconds)
    unsubscribe = engine.engines.supervisor.subscribe(client.update)
    yield client
    unsubscribe()
    if client._channel is not None:
        client._channel.close()


def test_many_frontends_get_what_they_asked_for(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            expected = [
                await collect(engine.client.submit(request(str(i), seed=i, max_tokens=30, n=2))) for i in range(8)
            ]
            clients = [engine.client]
            for _ in range(3):
                clients.append(await stack.enter_async_context(frontend(engine)))
            streams = [
                client.submit(request(f"{number} {i}", seed=i, max_tokens=30, n=2))
                for number, client in enumerate(clients)
                for i in range(8)
            ]
            await until(lambda: engine.client.stats.running > 0)
            await engine.kill()
            assert all(client.state is EngineState.RESTARTING for client in clients)
            assert await asyncio.gather(*map(collect, streams)) == expected * 4
            await until(lambda: all(client.stats.steps > 0 and client.stats.kv_usage == 0.0 for client in clients))

    run(test)


def test_the_engine_forgets_a_frontend_that_is_gone(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model, max_num_seqs=2, backend="reference") as engine:
            async with frontend(engine, lease_seconds=0.5) as gone:
                stream = gone.submit(request("abandoned", max_tokens=240, n=2))
                gone.submit(request("queued", max_tokens=240, n=2))
                await anext(stream)
            mine = engine.client.submit(request("mine", max_tokens=5))
            await until(lambda: engine.client.stats.waiting > 0)
            assert len((await collect(mine))[0]) == 5
            await until(lambda: engine.client.stats.kv_usage == 0.0)
            assert engine.client.stats.running == engine.client.stats.waiting == 0

    run(test)


def test_a_frontend_that_was_held_up_goes_on_token_for_token(tiny_model: Path) -> None:
    async def test() -> None:
        params = {"max_tokens": 200, "seed": 3, "n": 2}
        async with running(tiny_model) as engine:
            expected = await collect(engine.client.submit(request("undisturbed", **params)))
            async with frontend(engine, lease_seconds=1.0) as client:
                stream = client.submit(request("disturbed", **params))
                first = await anext(stream)
                client._channel._send = lambda *_: None
    run(test)
