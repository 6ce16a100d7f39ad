"""Engines die, by accident or by what they compute: who goes on, who is given up, and what is said."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.engine.client import EngineFailed, EngineState, EngineUnavailable, OutputStream
from octavo.engine.request import Refusal, RequestRefused
from octavo.worker.supervisor import RestartPolicy
from tests.worker.engines import collect, request, run, running, until

IMPATIENT = RestartPolicy(first_delay=0.01, max_delay=0.05)


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
            lost = client.submit(request("poison", (9,) * 200, max_tokens=1))
            while client.ledger:
                await until(lambda: client.state is EngineState.READY and lost.in_worker)
                await engine.kill()
            with pytest.raises(EngineFailed, match="died 3 times while computing this request"):
                await collect(lost)
            await until(lambda: client.state is EngineState.READY)
            assert len((await collect(client.submit(request("after", max_tokens=5))))[0]) == 5

    run(test)


def test_the_engine_ends_with_the_process_that_started_it(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model) as engine:
            process = engine.engines.supervisor._workers["tiny"]._process
            assert process is not None
            process._stdin.close()  # type: ignore[attr-defined]  # as the end of this process would
            assert await asyncio.wait_for(process.wait(), 10) == 0

    run(test)


@pytest.mark.parametrize("deadly", [1, 20])
def test_the_request_whose_tokens_kill_the_engine_fails_alone(tiny_model: Path, deadly: int) -> None:
    """Each time it brings a token or more before it kills: that it got on must not hide what it does."""

    async def test() -> None:
        async with running(tiny_model, module="tests.worker.fragile_engine", policy=IMPATIENT) as engine:
            client = engine.client
            names = [f"innocent {i}" for i in range(4)]

            def submit(name: str) -> OutputStream:
                return client.submit(request(name, max_tokens=60, seed=len(name), n=2))

            expected = [await collect(submit(name)) for name in names]
            streams = [submit(name) for name in names[:2]]
            lost = client.submit(request(f"poison:{deadly}", max_tokens=220))
            streams += [submit(name) for name in names[2:]]
            assert await asyncio.gather(*map(collect, streams)) == expected
            with pytest.raises(EngineFailed, match=r"died \d times while computing this request"):
                await collect(lost)
            assert engine.status.incarnation <= 10
            assert await collect(submit("innocent 0")) == expected[0]

    run(test)


def test_requests_that_kill_the_engine_do_not_end_it_for_good(tiny_model: Path) -> None:
    """One after the other, more than an engine survives that dies for no reason."""

    async def test() -> None:
        policy = replace(IMPATIENT, max_deaths=4)
        async with running(tiny_model, module="tests.worker.fragile_engine", policy=policy) as engine:
            for number in range(3):
                with pytest.raises(EngineFailed, match="died 3 times while computing this request"):
                    await collect(engine.client.submit(request(f"poison {number}:1", max_tokens=10)))
            await until(lambda: engine.client.state is EngineState.READY)
            assert engine.status.incarnation == 10
            assert len((await collect(engine.client.submit(request("after", max_tokens=5))))[0]) == 5

    run(test)


def test_an_engine_that_dies_without_a_culprit_is_given_up(tiny_model: Path) -> None:
    async def test() -> None:
        async with running(tiny_model, policy=replace(IMPATIENT, max_deaths=2)) as engine:
            for _ in range(2):
                await engine.kill()
                await until(lambda: engine.client.state is EngineState.READY)
            stream = engine.client.submit(request("it", max_tokens=200))
            await engine.kill()
            with pytest.raises(EngineFailed, match=r"tiny died 3 times within 300 s: .* was ended by SIGKILL"):
                await collect(stream)
            with pytest.raises(EngineUnavailable, match="died 3 times"):
                engine.client.submit(request("late"))

    run(test)


def test_while_an_engine_restarts_its_queue_is_bounded(tiny_model: Path) -> None:
    """As while it runs: 2 running and 3 waiting choices, or 40 waiting tokens."""

    async def refused(stream: OutputStream) -> None:
        with pytest.raises(RequestRefused, match="queue is full") as error:
            await collect(stream)
        assert error.value.kind is Refusal.OVERLOADED
        assert error.value.retry_after is not None
        assert error.value.retry_after >= 1

    async def test() -> None:
        bounds = {"max_num_seqs": 2, "max_num_queued_reqs": 3, "max_num_queued_tokens": 40}
        async with running(tiny_model, **bounds) as engine:
            client = engine.client
            await engine.kill()
            first = client.submit(request("first", max_tokens=100))
            waiting = [client.submit(request("two choices", n=2, max_tokens=5))]
            waiting.append(client.submit(request("short", max_tokens=5)))
            await refused(client.submit(request("too many choices", n=2, max_tokens=5)))
            await refused(client.submit(request("too many tokens", prompt=tuple(range(1, 33)), max_tokens=5)))
            waiting.append(client.submit(request("last", max_tokens=5)))
            await refused(client.submit(request("one too many", max_tokens=5)))
            waiting[-1].abort()
            waiting.append(client.submit(request("in its place", max_tokens=5)))
            assert client.state is EngineState.RESTARTING
            assert [len((await collect(stream))[0]) for stream in (waiting[0], waiting[1], waiting[3])] == [5, 5, 5]
            await collect(first)

    run(test)


def test_what_the_first_output_said_stands_after_a_restart(tiny_model: Path) -> None:
    prompt = tuple(range(3, 40))

    async def test() -> None:
        async with running(tiny_model) as engine:
            await collect(engine.client.submit(request("before", prompt, max_tokens=1)))
            stream = engine.client.submit(request("it", prompt, max_tokens=100))
            [first] = await anext(stream)
            assert first.cached_tokens == 32
            await engine.kill()
            rest = [output async for outputs in stream for output in outputs]
            assert len(rest) == 99
            assert all(output.cached_tokens is None and output.queue_seconds is None for output in rest)

    run(test)
