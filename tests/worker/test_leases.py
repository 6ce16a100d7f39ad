"""Several frontends of one engine: each gets its own, and none is in the way of others when it is gone or held up."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from octavo.engine.client import EngineClient, EngineState, OutputStream
from octavo.engine.local import LocalEngines
from octavo.engine.request import RequestRefused
from tests.tiny import write_tiny_model
from tests.worker.engines import Engine, collect, config, request, run, running, until


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
        async with running(tiny_model) as engine, AsyncExitStack() as stack:
            expected = [
                await collect(engine.client.submit(request(str(i), seed=i, max_tokens=30, n=2))) for i in range(8)
            ]
            more = [await stack.enter_async_context(frontend(engine)) for _ in range(3)]
            clients = [engine.client, *more]
            streams = [
                client.submit(request(f"{number} {i}", seed=i, max_tokens=30, n=2))
                for number, client in enumerate(clients)
                for i in range(8)
            ]
            await until(lambda: any(any(stream.outputs.values()) for stream in streams))
            await engine.kill()
            assert all(client.state is EngineState.RESTARTING for client in clients)
            assert await asyncio.gather(*map(collect, streams)) == expected * 4
            # On a busy machine all may have ended before the engine did: what has taken its place computes something.
            await collect(more[0].submit(request("last", max_tokens=2)))
            await until(lambda: all(client.stats.steps > 0 and client.stats.kv_usage == 0.0 for client in clients))

    run(test)


def test_a_frontend_that_comes_while_the_engine_restarts_waits_for_it_within_bounds(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model, max_num_seqs=2, max_num_queued_reqs=0) as engine:
            await engine.kill()
            async with frontend(engine) as client:
                assert client.state is EngineState.RESTARTING
                assert client.info is not None
                stream = client.submit(request("it", n=2, max_tokens=5))
                with pytest.raises(RequestRefused, match="queue is full"):
                    await collect(client.submit(request("too many", max_tokens=5)))
                assert [len(tokens) for tokens in (await collect(stream)).values()] == [5, 5]

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


def test_a_frontend_that_was_held_up_goes_on_token_for_token(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says something so seldom that the engine drops what it does for it, again and again."""
    params = {"max_tokens": 100, "seed": 3, "n": 2}

    async def test() -> None:
        async with running(tiny_model, max_num_batched_tokens=256) as engine:
            expected = await collect(engine.client.submit(request("undisturbed", **params)))
            monkeypatch.setattr("octavo.worker.channel.BEATS_PER_LEASE", 0.2)
            async with frontend(engine, lease_seconds=0.02) as client:
                sessions = []
                monkeypatch.setattr(client, "on_expired", lambda: (sessions.append(1), client.ledger.recall()))
                streams = [client.submit(request(f"disturbed {i}", **params)) for i in range(3)]
                assert await asyncio.gather(*map(collect, streams)) == [expected] * 3
                assert sessions
            assert engine.status.incarnation == 1
            await until(lambda: engine.client.stats.kv_usage == 0.0)

    run(test)


def test_two_engines_and_one_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    """Sixteen streams on each: those of the other do not notice, those of the killed one go on."""
    other_model = write_tiny_model(tmp_path / "other", seed=1)

    async def test() -> None:
        async with LocalEngines() as engines:
            clients = {
                "one": engines.start("one", config(tiny_model, max_num_seqs=16)),
                "other": engines.start("other", config(other_model, max_num_seqs=16)),
            }
            for client in clients.values():
                await asyncio.wait_for(client.ready(), 60)

            def submit(client: EngineClient) -> list[OutputStream]:
                return [client.submit(request(str(i), seed=i, max_tokens=100)) for i in range(16)]

            expected = {name: await asyncio.gather(*map(collect, submit(client))) for name, client in clients.items()}
            assert expected["one"] != expected["other"]
            streams = {name: submit(client) for name, client in clients.items()}
            first = {name: await anext(own[0]) for name, own in streams.items()}
            pid = engines.supervisor.status("one").pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            others = await asyncio.gather(*map(collect, streams["other"]))
            ones = await asyncio.gather(*map(collect, streams["one"]))
            for name, found in (("one", ones), ("other", others)):
                found[0][0] = [*first[name][0].token_ids, *found[0][0]]
                assert found == expected[name]
            assert engines.supervisor.status("one").incarnation == 2
            assert engines.supervisor.status("other").incarnation == 1

    run(test)
