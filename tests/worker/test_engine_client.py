"""An engine in a process of its own, as a frontend sees it: streams, aborts, refusals, the end."""

import asyncio
from pathlib import Path

import psutil
import pytest

from octavo.engine.client import EngineFailed, EngineState, EngineStopped, EngineUnavailable
from octavo.engine.config import EngineConfig
from octavo.engine.local import LocalEngines
from octavo.engine.request import FinishReason, RequestRefused
from tests.worker.engines import NAME, collect, request, run, running, until


def test_streams_end_and_pages_come_back(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            client = engine.client
            streams = [client.submit(request(str(i), max_tokens=10, seed=i, n=1 + i % 2)) for i in range(12)]
            for i, found in enumerate(await asyncio.gather(*map(collect, streams))):
                assert [len(tokens) for tokens in found.values()] == [10] * (1 + i % 2)
            assert not client.ledger
            await until(lambda: client.stats.steps > 0 and client.stats.kv_usage == 0.0)

    run(test)


def test_a_request_is_accepted_before_its_first_token_or_refused(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model, max_num_seqs=1, max_num_queued_reqs=1) as engine:
            computed = engine.client.submit(request("computed", max_tokens=200))
            await anext(computed)
            waiting, refused = (engine.client.submit(request(name, max_tokens=200)) for name in ("waiting", "refused"))
            await asyncio.wait_for(waiting.accepted.wait(), 10)
            with pytest.raises(RequestRefused, match="queue is full"):
                await anext(refused)
            assert not refused.accepted.is_set()
            assert computed.accepted.is_set()
            assert not any(waiting.outputs.values())

    run(test)


@pytest.mark.parametrize(("n", "max_tokens"), [(4, 6), (24, 1)])
def test_many_choices_end_in_one_step(tiny_model: Path, n: int, max_tokens: int) -> None:
    async def test() -> None:
        async with running(tiny_model, max_num_seqs=32) as engine:
            found = await collect(engine.client.submit(request("it", n=n, max_tokens=max_tokens)))
            assert [len(tokens) for tokens in found.values()] == [max_tokens] * n
            assert engine.status.incarnation == 1

    run(test)


def test_abort_frees_pages_and_the_rest_goes_on(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model, max_num_seqs=2) as engine:
            client = engine.client
            streams = [client.submit(request(str(i), max_tokens=200, n=2)) for i in range(4)]
            await anext(streams[0])
            for stream in streams:
                stream.abort()
                stream.abort()
            assert await collect(streams[3]) == {}
            assert not client.ledger
            await until(lambda: client.stats.kv_usage == 0.0 and client.stats.waiting == 0)
            one = client.submit(request("one", max_tokens=20, n=2))
            first = await anext(one)
            one.abort(0)
            rest = await collect(one)
            assert len(rest[1]) + sum(len(o.token_ids) for o in first if o.index == 1) == 20

    run(test)


def test_refusals_reach_the_stream(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            with pytest.raises(RequestRefused, match="over the limit of 256"):
                await collect(engine.client.submit(request("long", max_tokens=1000)))
            assert not engine.client.ledger

    run(test)


def test_finish_reasons_and_first_output(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            stream = engine.client.submit(request("it", max_tokens=3, logprobs=2))
            outputs = [output async for step in stream for output in step]
            assert outputs[0].cached_tokens == 0
            assert outputs[0].queue_seconds is not None
            assert outputs[0].prefill_seconds is not None
            assert [output.finish_reason for output in outputs] == [None, None, FinishReason.LENGTH]
            assert all(output.logprobs and len(output.logprobs[0].top_tokens) == 2 for output in outputs)

    run(test)


def test_the_end_drains_first(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            stream = engine.client.submit(request("it", max_tokens=100))
            results, _ = await asyncio.gather(collect(stream), engine.engines.end(NAME, drain_seconds=30))
            assert len(results[0]) == 100
            with pytest.raises(EngineUnavailable, match="shutting down"):
                engine.client.submit(request("late"))

    run(test)


def test_without_draining_streams_end_with_an_error(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            stream = engine.client.submit(request("it", max_tokens=200))
            await anext(stream)
            await engine.engines.end(NAME)
            with pytest.raises(EngineStopped, match="shutting down"):
                await collect(stream)

    run(test)


def test_what_cannot_be_loaded_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "none"}')
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")

    async def test() -> None:
        async with LocalEngines() as engines:
            client = engines.start(NAME, EngineConfig(model=str(tmp_path)))
            with pytest.raises(EngineUnavailable, match="loading"):
                client.submit(request("early"))
            with pytest.raises(EngineFailed, match="NoSuchModel"):
                await asyncio.wait_for(client.ready(), 30)
            assert client.state is EngineState.FAILED
            with pytest.raises(EngineUnavailable, match="NoSuchModel"):
                client.submit(request("late"))

    run(test)


def test_an_engine_with_work_that_says_nothing_is_stalled(tiny_model: Path) -> None:
    async def test() -> None:
        async with LocalEngines() as engines:
            client = engines.start(NAME, EngineConfig(model=str(tiny_model)), stall_timeout=0.5)
            await asyncio.wait_for(client.ready(), 30)
            pid = engines.supervisor.status(NAME).pid
            assert pid is not None
            stream = client.submit(request("it", max_tokens=200))
            await anext(stream)
            engine = psutil.Process(pid)
            engine.suspend()
            await until(lambda: client.stalled)
            assert client.state is EngineState.READY
            engine.resume()
            await until(lambda: not client.stalled)
            await collect(stream)
            assert not client.stalled  # and has no work any more

    run(test)
