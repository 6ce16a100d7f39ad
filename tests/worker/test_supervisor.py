"""Supervision of processes that do as they are told: states, restarts, giving up, what both ends tell each other."""

import asyncio
import errno
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from octavo.errors import OctavoError
from octavo.worker.control import WorkerState, WorkerStatus, raw
from octavo.worker.launcher import LocalLauncher, LocalProcess, WorkerSpec
from octavo.worker.supervisor import RestartPolicy, Supervisor
from tests.worker.engines import REPOSITORY, run, until

IMPATIENT = RestartPolicy(first_delay=0.001, max_delay=0.01, max_deaths=3)
READY = ["ready", "hello"]


forks = False


@pytest.fixture(params=[False, True], ids=["started", "forked"], autouse=True)
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell how a process came to be."""
    monkeypatch.setattr(f"{__name__}.forks", request.param)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def toy(*actions: list[object], name: str = "toy", informed: bool = False) -> WorkerSpec:
    return WorkerSpec(
        name=name,
        module="tests.worker.toy_worker",
        configuration=json.dumps(actions).encode(),
        informed=informed,
        forks=forks,
    )


class Observer:
    """Notes all that a supervisor tells, and all that processes tell it."""

    def __init__(self) -> None:
        self.statuses: list[WorkerStatus] = []
        self.heard: list[tuple[str, list[object]]] = []

    def states(self, name: str = "toy") -> list[WorkerState]:
        states = [status.state for status in self.statuses if status.name == name]
        return [state for i, state in enumerate(states) if i == 0 or state is not states[i - 1]]

    async def handle(self, name: str, payload: msgspec.Raw) -> msgspec.Raw:
        asked = msgspec.json.decode(payload)
        self.heard.append((name, asked))
        match asked:
            case "nonsense":
                raise OctavoError("that makes no sense")
            case "defect":
                raise ZeroDivisionError
        return raw({"you asked": asked})


@asynccontextmanager
async def supervising(policy: RestartPolicy = IMPATIENT) -> AsyncIterator[tuple[Supervisor, Observer]]:
    observer = Observer()
    supervisor = Supervisor(LocalLauncher(), handler=observer.handle, policy=policy)
    supervisor.subscribe(observer.statuses.append)
    try:
        yield supervisor, observer
    finally:
        await supervisor.stop()


def test_a_worker_becomes_ready_and_says_what_it_is() -> None:
    async def test() -> None:
        async with supervising() as (supervisor, observer):
            supervisor.add(toy(["print", '{"type": "failed", "message": "no"}'], ["loading", 1, 4], READY))
            status = await supervisor.settled("toy")
            assert status.state is WorkerState.READY
            assert msgspec.json.decode(status.payload) == "hello"
            assert status.incarnation == 1
            assert (1, 4) in [status.progress for status in observer.statuses]
            with pytest.raises(ValueError, match="already"):
                supervisor.add(toy())
            await supervisor.remove("toy")
            assert observer.states() == [WorkerState.LOADING, WorkerState.READY, WorkerState.STOPPED]
            with pytest.raises(KeyError):
                supervisor.status("toy")
            supervisor.add(toy(READY))  # the name is free again
            await supervisor.settled("toy")

    run(test)


@pytest.mark.parametrize(
    ("action", "why"),
    [
        (["fail", "there is no such model"], "there is no such model"),
        (["exit", 3], "the process of toy ended with status 3 while loading"),
        (["write", "!"], "the process of toy was ended by SIGKILL while loading"),
        (["write", '{"type": "unheard of"}'], "the process of toy was ended by SIGKILL while loading"),
    ],
)
def test_what_cannot_become_ready_is_not_tried_again(action: list[object], why: str) -> None:
    async def test() -> None:
        async with supervising() as (supervisor, observer):
            supervisor.add(toy(action))
            status = await supervisor.settled("toy")
            assert (status.state, status.failure, status.incarnation) == (WorkerState.FAILED, why, 1)
            assert (await supervisor.ended("toy")).state is WorkerState.FAILED
            assert observer.states() == [WorkerState.LOADING, WorkerState.FAILED]

    run(test)


def test_an_heir_has_an_address_of_its_own_and_the_configuration_that_was_left_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with supervising() as (supervisor, observer):
            supervisor.add(toy(["ready", "first", [["ready", "second"]]], ["exit", 1]))
            await until(lambda: any(status.payload == raw("second") for status in observer.statuses))
            ready = [status for status in observer.statuses if status.state is WorkerState.READY]
            assert len({status.address for status in ready if status.address}) == 2
            assert observer.states() == [
                WorkerState.LOADING,
                WorkerState.READY,
                WorkerState.RESTARTING,
                WorkerState.READY,
            ]
        again = [message for message in caplog.messages if "ready again after" in message]
        assert len(again) == 1

    run(test)


def test_what_a_process_has_put_beside_its_socket_goes_with_it() -> None:
    async def test() -> None:
        async with supervising() as (supervisor, _):
            supervisor.add(toy(["touch", ""], ["touch", ".running"], ["touch", "0"], READY))
            address = (await supervisor.settled("toy")).address
            assert address is not None
            folder, name = os.path.split(address.removeprefix("ipc://"))
            assert {name, f"{name}.running"} <= set(os.listdir(folder))
            await supervisor.remove("toy")
            assert os.listdir(folder) == [f"{name}0"]  # another one's

    run(test)


def test_it_is_given_up_after_too_many_deaths_and_says_why() -> None:
    async def test() -> None:
        async with supervising() as (supervisor, _):
            supervisor.add(toy(READY, ["exit", 7]))
            status = await asyncio.wait_for(supervisor.ended("toy"), 60)
            assert status.state is WorkerState.FAILED
            assert status.failure == "toy died 4 times within 300 s: the process of toy ended with status 7"
            assert status.incarnation == 4

    run(test)


def test_an_heir_that_cannot_load_is_tried_again_and_its_reason_is_said() -> None:
    async def test() -> None:
        async with supervising() as (supervisor, _):
            supervisor.add(toy(["ready", "first", [["fail", "no memory"]]], ["exit", 1]))
            status = await asyncio.wait_for(supervisor.ended("toy"), 60)
            assert status.failure == "toy died 4 times within 300 s: no memory"

    run(test)


def test_deaths_that_a_culprit_explains_do_not_count() -> None:
    async def test() -> None:
        async with supervising() as (supervisor, observer):
            supervisor.add(toy(["culprit", "toy"], READY, ["exit", 1]))
            await until(lambda: supervisor.status("toy").incarnation > 6)
            assert WorkerState.FAILED not in observer.states()

    run(test)


def test_a_shortage_of_descriptors_or_memory_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it lasts: many more tries than deaths that would be the end."""
    launch = LocalLauncher.launch
    tries = 0

    async def fail_for_long(launcher: LocalLauncher, spec: WorkerSpec, before: bytes) -> LocalProcess:
        nonlocal tries
        tries += 1
        if tries <= 30:
            raise OSError([errno.EMFILE, errno.ENOMEM][tries % 2], "none left")
        return await launch(launcher, spec, before)

    async def test() -> None:
        async with supervising() as (supervisor, observer):
            supervisor.add(toy(READY))
            pid = (await supervisor.settled("toy")).pid
            assert pid is not None
            monkeypatch.setattr(LocalLauncher, "launch", fail_for_long)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: observer.states()[-2:] == [WorkerState.RESTARTING, WorkerState.READY])
            assert tries == 31

    run(test)


def test_what_cannot_be_started_at_all_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")

    async def test() -> None:
        async with supervising() as (supervisor, _):
            supervisor.add(toy(READY))
            status = await supervisor.settled("toy")
            assert status.state is WorkerState.FAILED
            assert "no process can be started for toy: [Errno 2] No such file or directory" in str(status.failure)

    run(test)


def test_an_informed_process_hears_of_the_others_and_gets_answers() -> None:
    async def test() -> None:
        async with supervising() as (supervisor, observer):
            supervisor.add(toy(READY, name="other"))
            await supervisor.settled("other")
            questions = [["ask", 1, "what?"], ["ask", 2, "nonsense"], ["ask", 3, "defect"]]
            supervisor.add(toy(READY, *questions, informed=True))
            supervisor.add(toy(READY, name="uninformed"))
            await supervisor.settled("toy")
            supervisor.notify(raw({"news": 1}))
            await supervisor.remove("other")
            expected = [
                ["status", "other", "ready"],
                ["status", "other", "stopped"],
                ["status", "uninformed", "loading"],
                ["answer", 1, {"you asked": "what?"}, None],
                ["answer", 2, None, "that makes no sense"],
                ["answer", 3, None, "the supervisor had an error; its log says which"],
                ["notice", {"news": 1}],
            ]
            await until(lambda: all(("toy", item) in observer.heard for item in expected))
            assert not any(name == "uninformed" for name, _ in observer.heard)
            assert not any(item[:2] == ["status", "toy"] for _, item in observer.heard)
            supervisor.notify(raw("last"))
            await asyncio.wait_for(supervisor.synced("toy"), 20)
            assert observer.heard[-2:] == [("toy", ["notice", "last"]), ("toy", ["sync"])]
            await asyncio.wait_for(supervisor.finish("toy", 30), 20)
            assert ("toy", ["stop", 30.0]) in observer.heard
            assert supervisor.status("toy").state is WorkerState.STOPPED
            assert supervisor.status("toy").incarnation == 1

    run(test)


def test_nobody_waits_for_a_process_that_died_before_it_heard() -> None:
    async def test() -> None:
        async with supervising() as (supervisor, observer):
            supervisor.add(toy(READY, informed=True))
            pid = (await supervisor.settled("toy")).pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            waiting = asyncio.create_task(supervisor.synced("toy"))
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            await asyncio.wait_for(waiting, 20)
            assert ("toy", ["sync"]) not in observer.heard

    run(test)


def test_a_process_that_heeds_nothing_is_ended_by_force() -> None:
    async def test() -> None:
        policy = RestartPolicy(grace=0.2)
        async with supervising(policy) as (supervisor, _):
            for name, end in (
                ("removed", lambda: supervisor.remove("removed")),
                ("finished", lambda: supervisor.finish("finished", 0.1)),
            ):
                supervisor.add(toy(READY, name=name, informed=True))
                pid = (await supervisor.settled(name)).pid
                assert pid is not None
                os.kill(pid, signal.SIGSTOP)
                await asyncio.wait_for(end(), 20)
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)

    run(test)


@pytest.mark.parametrize("when", ["starting", "loading", "restarting"])
def test_it_can_be_stopped_at_any_time(when: str) -> None:
    async def test() -> None:
        policy = RestartPolicy(first_delay=600, max_delay=600)
        async with supervising(policy) as (supervisor, observer):
            actions = {"starting": [READY], "loading": [["loading", 1, 2]], "restarting": [READY, ["exit", 1]]}
            supervisor.add(toy(*actions[when]))
            if when == "loading":
                await until(lambda: supervisor.status("toy").progress == (1, 2))
            elif when == "restarting":
                await until(lambda: supervisor.status("toy").incarnation == 2)
                await until(lambda: supervisor.status("toy").pid is None)
            await asyncio.wait_for(supervisor.stop(), 20)
            assert observer.states()[-1] is WorkerState.STOPPED

    run(test)
