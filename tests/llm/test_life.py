"""However a program ends, its engine ends with it, and what is said about it is short."""

import asyncio
import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo import LLM, SamplingParams
from octavo.llm.background import Background
from tests.llm.conftest import run

BEGIN = """
import gc, os, signal, sys, threading, time
from octavo import LLM, SamplingParams
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
llm = LLM(sys.argv[1], max_num_seqs=8)
print("ready", flush=True)
sys.stdin.readline()
"""


@contextmanager
def program(text: str, model: str, begin: str = BEGIN) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A program and the processes that it has started once it is ready; it goes on at a line on standard input."""
    command = [sys.executable, "-c", begin + text, model]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parents[2], start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()


def go_on(process: subprocess.Popen[str]) -> str:
    """Let it run to its end, and return what it printed. It must not have complained."""
    out, err = process.communicate("\n", timeout=30)
    assert (process.returncode, err) == (0, "")
    return out


def assert_ended(processes: list[psutil.Process], seconds: float = 10) -> None:
    assert processes
    _, left = psutil.wait_procs(processes, seconds)
    assert not left


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(0)",
        "llm.close(); llm.close()",
        "for i in range(2): llm = LLM(sys.argv[1])",
        "chunks = llm.stream('the', LONG); next(chunks)",
        "chunks = llm.stream('the', LONG); next(chunks); del llm",
        "threading.Thread(target=llm.generate, args=(['the'] * 50, LONG), daemon=True).start(); time.sleep(0.1)",
        "threading.excepthook = print; threading.Thread(target=llm.generate, args=('the', LONG)).start()",
        "import atexit; atexit.register(lambda: print(len(llm.generate('the')))); ",
    ],
)
def test_a_program_that_ends_takes_its_engine_along(model: str, end: str) -> None:
    with program(end, model) as (process, engines):
        go_on(process)
        assert_ended(engines)


@pytest.mark.parametrize("in_process", [False, True])
def test_what_compiles_grammars_ends_with_the_model(model: str, in_process: bool) -> None:
    before = set(psutil.Process().children())
    with LLM(model, max_num_seqs=8, in_process=in_process) as llm:
        llm.generate("the", SamplingParams(structured_outputs={"regex": "[a-z]{3}"}))
        own = set(psutil.Process().children()) - before
        compilers = [process for process in own if "octavo.grammar.process" in process.cmdline()]
    assert_ended(compilers)


def test_an_engine_ends_when_nothing_refers_to_it_any_more(model: str) -> None:
    with program("del llm; gc.collect(); print('gone', flush=True); sys.stdin.readline()", model) as (process, engines):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "gone\n"
        assert_ended(engines)
        assert process.poll() is None


def test_a_killed_program_takes_its_engine_along(model: str) -> None:
    with program("llm.generate(['the'] * 500, LONG)", model) as (process, engines):
        process.kill()
        assert_ended(engines)


def test_ctrl_c_ends_a_batch_and_nothing_else(model: str) -> None:
    text = """
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    llm.generate(["the"] * 2000, LONG)
except KeyboardInterrupt:
    print("interrupted")
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    while True:
        for chunk in llm.stream("the", LONG):
            pass
except KeyboardInterrupt:
    print("interrupted")
print(len(llm.generate("the", LONG)[0].token_ids))
"""
    with program(text, model) as (process, engines):
        assert go_on(process).split() == ["interrupted", "interrupted", "200"]
        assert_ended(engines)


def test_ctrl_c_of_a_terminal_ends_a_program_and_its_engine(model: str) -> None:
    with program("llm.generate(['the'] * 2000, LONG)", model) as (process, engines):
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert err.strip().splitlines()[-1] == "KeyboardInterrupt"
        assert process.returncode == -signal.SIGINT
        assert_ended(engines)


def test_ctrl_c_while_loading(model: str) -> None:
    begin = """
import os, signal, sys, threading
from octavo import LLM
from octavo.engine.client import EngineClient
ready = EngineClient.ready
async def interrupted(self):
    os.kill(os.getpid(), signal.SIGINT)
    return await ready(self)
EngineClient.ready = interrupted
print("ready", flush=True)
try:
    LLM(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", [thread.name for thread in threading.enumerate()], flush=True)
"""
    with program("", model, begin) as (process, _):
        assert "interrupted ['MainThread'" in go_on(process)
        assert not psutil.pid_exists(process.pid)


FORK = """
child = os.fork()
if not child:
    for call in (lambda: llm.generate("the"), lambda: list(llm.stream("the"))):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, error)
    llm.close()
    del llm
    gc.collect()
    sys.exit(0)
print(os.waitpid(child, 0)[1], len(llm.generate("the", LONG)[0].token_ids))
"""


def test_a_forked_child_cannot_use_an_llm_and_does_it_no_harm(model: str) -> None:
    with program(FORK, model) as (process, engines):
        *refused, last = go_on(process).splitlines()
        assert refused == [f"ClosedError this LLM belongs to process {process.pid}, which forked; make one here"] * 2
        assert last == "0 200"
        assert_ended(engines)


def test_a_forked_child_does_not_keep_the_engine_of_a_killed_program(model: str) -> None:
    text = """
child = os.fork()
if not child:
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""
    with program(text, model) as (process, engines):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        try:
            process.kill()
            assert_ended(engines)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_killed_engine_is_started_again_and_the_text_goes_on(model: str) -> None:
    text = """
import psutil
whole = llm.generate("the", LONG)[0].text
parts = []
for position, chunk in enumerate(llm.stream("the", LONG)):
    if position == 5:
        for engine in psutil.Process().children(): engine.kill()
    parts.append(chunk.text)
print("".join(parts) == whole)
"""
    with program(text, model) as (process, _):
        out, _err = process.communicate("\n", timeout=60)
        assert out == "True\n"


@pytest.mark.parametrize("policy", ["uvloop.EventLoopPolicy", "asyncio.DefaultEventLoopPolicy"])
def test_whatever_event_loops_the_program_has(model: str, policy: str) -> None:
    begin = f"import asyncio, uvloop; asyncio.set_event_loop_policy({policy}())" + BEGIN
    text = """
async def program():
    outputs = await llm.agenerate(["the"] * 3, LONG)
    return [len(output.token_ids) for output in outputs]
print(asyncio.run(program()), len(llm.generate("the", LONG)[0].token_ids))
"""
    with program(text, model, begin) as (process, engines):
        assert go_on(process) == "[200, 200, 200] 200\n"
        assert_ended(engines)


BARS = "import sys; from octavo import LLM; llm = LLM(sys.argv[1]{}); llm.generate(['the'] * {}{})"


@pytest.mark.parametrize(
    ("options", "prompts", "arguments", "shown"),
    [
        ("", 3, "", {"loading", "prompts"}),
        ("", 1, "", {"loading"}),
        (", progress=False", 3, "", set()),
        (", progress=False", 3, ", progress=True", {"prompts"}),
    ],
)
def test_bars_on_a_terminal(model: str, options: str, prompts: int, arguments: str, shown: set[str]) -> None:
    command = [sys.executable, "-c", BARS.format(options, prompts, arguments), model]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while more := os.read(ours, 4096):
                seen += more
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert process.returncode == 0, seen
    assert {name for name in ("loading", "prompts") if name.encode() in seen} == shown


def test_no_bars_elsewhere(model: str) -> None:
    result = run(BARS.format("", 3, ""), model)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert "prompts" in run(BARS.format("", 3, ", progress=True"), model).stderr


def test_ctrl_c_while_work_is_handed_to_the_background_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.set()

    hand_over = asyncio.run_coroutine_threadsafe

    def interrupted(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        hand_over(work, loop)
        assert began.wait(10)
        raise KeyboardInterrupt

    background = Background("test", lambda: contextlib.nullcontext())
    try:
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            background.run(work())
        assert ended.wait(10)
    finally:
        background.close()
