"""Engines die, by accident or by what they compute: who goes on, who is given up, and what is said."""

import asyncio
from pathlib import Path

import pytest

from octavo.engine.client import EngineFailed, EngineState
from octavo.engine.request import Request, SamplingParams
from tests.worker.engines import collect, request, run, running, until


def test_a_killed_engine_resumes_token_for_token(tiny_model: Path) -> None:
    async def test() -> None:
        params = {"max_tokens": 150, "seed": 3, "n": 2, "presence_penalty": 0.3}
        async with running(tiny_model, max_num_seqs=4) as engine:
            client = engine.client
            expected = await collect(client.submit(request("undisturbed", **params)))
            streams = [client.submit(request(f"disturbed {i}", **params)) for i in range(3)]
            found: list[dict[int, list[int]]] = [{}, {}, {}]
            for kill in range(2):
                async for outputs in streams[0]:
                    for output in outputs:
                        found[0].setdefault(output.index, []).extend(output.token_ids)
                    if len(found[0].get(1, [])) > 30 * (kill + 1):
                        break
                await engine.kill()
                assert client.state is EngineState.RESTARTING
                client.submit(request(f"meanwhile {kill}", max_tokens=2))
                await until(lambda: client.state is EngineState.READY)
            results = await asyncio.gather(*(collect(s, f) for s, f in zip(streams, found, strict=True)))
            assert all(result == expected for result in results)
            await until(lambda: not client.ledger and client.stats.kv_usage == 0.0)

    run(test)


def test_a_request_that_kills_the_engine_is_given_up_and_others_survive(tiny_model: Path) -> None:
    async def test() -> None:
        # The slow backend takes some 200 steps for the prompt, and produces nothing until then: time to kill.
        async with running(tiny_model, backend="reference", max_num_seqs=1, max_num_batched_tokens=1) as engine:
            client = engine.client
            poison = Request(request_id="poison", prompt_token_ids=[9] * 200, params=SamplingParams(max_tokens=1))
            lost = client.submit(poison)
            while client.ledger:
                await until(lambda: client.state is EngineState.READY and lost.in_worker)
                await engine.kill()
            with pytest.raises(EngineFailed, match="died 3 times while computing this request"):
                await collect(lost)
            await until(lambda: client.state is EngineState.READY)
            assert len((await collect(client.submit(request("after", max_tokens=5))))[0]) == 5

    run(test)


def test_a_long_temporary_folder_is_no_obstacle(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    async def test() -> None:
        async with running(tiny_model) as engine:
            assert len((await collect(engine.client.submit(request("it", max_tokens=2))))[0]) == 2

    run(test)


def test_the_engine_ends_with_the_process_that_started_it(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            process = engine.engines.supervisor._workers["tiny"]._process
            assert process is not None
            process._stdin.close()  # type: ignore[attr-defined]  # as the end of this process would
            assert await asyncio.wait_for(process.wait(), 10) == 0

    run(test)
