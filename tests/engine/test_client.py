"""The client and its engine process: streams, aborts, death and resurrection."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from octavo.engine.client import EngineClient, EngineFailed, EngineState, EngineUnavailable, OutputStream
from octavo.engine.config import EngineConfig
from octavo.engine.request import FinishReason, Request, RequestRefused, SamplingParams


@asynccontextmanager
async def running(model: Path, **settings: object) -> AsyncIterator[EngineClient]:
    """A client whose engine is ready, stopped afterwards."""
    defaults = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 2**20}
    client = EngineClient(EngineConfig(model=str(model), **(defaults | settings)))  # type: ignore[arg-type]
    await client.start()
    try:
        await asyncio.wait_for(client.ready(), 30)
        yield client
    finally:
        await client.stop()


async def collect(stream: OutputStream, found: dict[int, list[int]] | None = None) -> dict[int, list[int]]:
    """Everything the stream still brings, added to what is `found` already."""
    found = {} if found is None else found
    async for outputs in stream:
        for output in outputs:
            found.setdefault(output.index, []).extend(output.token_ids)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def request(name: str, **params: object) -> Request:
    return Request(request_id=name, prompt_token_ids=[5, 6, 7, 8], params=SamplingParams(**params))  # type: ignore[arg-type]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))  # type: ignore[arg-type]


def test_streams_end_and_pages_come_back(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as client:
            streams = [client.submit(request(str(i), max_tokens=10, seed=i, n=1 + i % 2)) for i in range(12)]
            for i, found in enumerate(await asyncio.gather(*map(collect, streams))):
                assert [len(tokens) for tokens in found.values()] == [10] * (1 + i % 2)
            assert not client.ledger
            await until(lambda: client.stats.kv_usage == 0.0)

    run(test)


@pytest.mark.parametrize(("n", "max_tokens"), [(4, 6), (24, 1)])
def test_many_choices_end_in_one_step(tiny_model: Path, n: int, max_tokens: int) -> None:
    async def test() -> None:
        async with running(tiny_model, max_num_seqs=32) as client:
            found = await collect(client.submit(request("it", n=n, max_tokens=max_tokens)))
            assert [len(tokens) for tokens in found.values()] == [max_tokens] * n
            assert client.restarts == 0

    run(test)


def test_when_no_engine_can_be_started_requests_fail(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with running(tiny_model) as client:
            monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
            stream = client.submit(request("it", max_tokens=200))
            await anext(stream)
            assert client._process is not None
            os.kill(client._process.pid, signal.SIGKILL)
            with pytest.raises(EngineFailed, match="cannot be started"):
                await collect(stream)
            assert client.state is EngineState.FAILED

    run(test)


def test_a_long_temporary_folder_is_no_obstacle(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    async def test() -> None:
        async with running(tiny_model) as client:
            assert len((await collect(client.submit(request("it", max_tokens=2))))[0]) == 2

    run(test)


def test_a_killed_engine_resumes_token_for_token(tiny_model: Path) -> None:
    async def test() -> None:
        params = {"max_tokens": 150, "seed": 3, "n": 2, "presence_penalty": 0.3}
        async with running(tiny_model, max_num_seqs=4) as client:
            expected = await collect(client.submit(request("undisturbed", **params)))
            streams = [client.submit(request(f"disturbed {i}", **params)) for i in range(3)]
            found: list[dict[int, list[int]]] = [{}, {}, {}]
            for kill in range(2):
                async for outputs in streams[0]:
                    for output in outputs:
                        found[0].setdefault(output.index, []).extend(output.token_ids)
                    if len(found[0].get(1, [])) > 30 * (kill + 1):
                        break
                assert client._process is not None
                os.kill(client._process.pid, signal.SIGKILL)
                await until(lambda: client.state is EngineState.RESTARTING)
                client.submit(request(f"meanwhile {kill}", max_tokens=2))
                await until(lambda: client.state is EngineState.READY)
            results = await asyncio.gather(*(collect(s, f) for s, f in zip(streams, found, strict=True)))
            assert all(result == expected for result in results)
            await until(lambda: not client.ledger and client.stats.kv_usage == 0.0)

    run(test)


def test_a_request_that_kills_the_engine_is_given_up_and_others_survive(tiny_model: Path) -> None:
    async def test() -> None:
        # The slow backend takes some 200 steps for the prompt, and produces nothing until then: time to kill.
        async with running(tiny_model, backend="reference", max_num_seqs=1, max_num_batched_tokens=1) as client:
            poison = Request(request_id="poison", prompt_token_ids=[9] * 200, params=SamplingParams(max_tokens=1))
            lost = client.submit(poison)
            while client.ledger:
                await until(lambda: client.state is EngineState.READY and lost.in_engine)
                assert client._process is not None
                os.kill(client._process.pid, signal.SIGKILL)
                await until(lambda: client.state is EngineState.RESTARTING or not client.ledger)
            with pytest.raises(EngineFailed, match="died 3 times while computing this request"):
                await collect(lost)
            await until(lambda: client.state is EngineState.READY)
            assert len((await collect(client.submit(request("after", max_tokens=5))))[0]) == 5

    run(test)


def test_abort_frees_pages_and_the_rest_goes_on(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model, max_num_seqs=2) as client:
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
        async with running(tiny_model) as client:
            with pytest.raises(RequestRefused, match="over the limit of 256"):
                await collect(client.submit(request("long", max_tokens=1000)))
            assert not client.ledger

    run(test)


def test_stop_drains_first(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as client:
            stream = client.submit(request("it", max_tokens=100))
            results, _ = await asyncio.gather(collect(stream), client.stop(drain_seconds=30))
            assert len(results[0]) == 100
            with pytest.raises(EngineUnavailable, match="shutting down"):
                client.submit(request("late"))

    run(test)


def test_stop_without_draining_ends_streams_with_an_error(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as client:
            stream = client.submit(request("it", max_tokens=200))
            await anext(stream)
            await client.stop()
            with pytest.raises(EngineFailed, match="shutting down"):
                await collect(stream)

    run(test)


def test_what_cannot_be_loaded_fails_with_its_reason(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "none"}')
        (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        client = EngineClient(EngineConfig(model=str(tmp_path)))
        await client.start()
        with pytest.raises(EngineFailed, match="NoSuchModel"):
            await asyncio.wait_for(client.ready(), 30)
        assert client.state is EngineState.FAILED
        with pytest.raises(EngineUnavailable, match="NoSuchModel"):
            client.submit(request("it"))
        await client.stop()

    run(test)


def test_the_engine_ends_with_the_process_that_started_it(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as client:
            process = client._process
            assert process is not None
            assert process.stdin is not None
            process.stdin.close()  # as the end of this process would
            assert await asyncio.wait_for(process.wait(), 10) == 0

    run(test)


def test_finish_reasons_and_first_output(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as client:
            outputs = [
                output async for step in client.submit(request("it", max_tokens=3, logprobs=2)) for output in step
            ]
            assert outputs[0].cached_tokens == 0
            assert outputs[0].queue_seconds is not None
            assert outputs[0].prefill_seconds is not None
            assert [output.finish_reason for output in outputs] == [None, None, FinishReason.LENGTH]
            assert all(output.logprobs and len(output.logprobs[0].top_tokens) == 2 for output in outputs)

    run(test)
