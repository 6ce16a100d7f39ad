"""The process that compiles grammars may end, be slow or not start: that is nobody's 500, and it comes back."""

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from octavo.grammar import compiler, constraint
from octavo.grammar.compiler import GrammarBusy, GrammarCompiler, Job, NotCompiled, Verdict
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError
from octavo.grammar.vocabulary import Vocabulary


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.update(each.pid for each in psutil.Process().children())


@pytest.fixture
def compiling(vocabulary: Vocabulary) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(lambda: vocabulary)
    yield made
    made.close()


def require(compiling: GrammarCompiler, wanted: Constraint) -> None:
    try:
        compiling.require(wanted)
    except NotCompiled as missing:
        missing.begin("").result(60)
        compiling.require(wanted)


OTHERS: set[int] = set()
"""Processes that other tests' servers have."""


def children() -> list[psutil.Process]:
    found = [each for each in psutil.Process().children() if each.pid not in OTHERS]
    return [each for each in found if "octavo.grammar.process" in " ".join(each.cmdline())]


def test_verdicts_are_kept(compiling: GrammarCompiler) -> None:
    require(compiling, constraint.regex("a+", "it"))
    [process] = children()
    process.kill()
    compiling.require(constraint.regex("a+", "it"))
    with pytest.raises(GrammarError, match="look-around"):
        require(compiling, constraint.regex("(?=a)", "it"))


def test_a_process_that_has_ended_is_started_again(compiling: GrammarCompiler) -> None:
    for number in range(3):
        require(compiling, constraint.regex(f"a{{{number + 1}}}", "it"))
        [process] = children()
        process.kill()
        process.wait(10)


def test_a_tenant_does_not_wait_in_the_queue_of_another_for_the_same_grammar(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling = GrammarCompiler(lambda: vocabulary)
    begun, go_on, judged = threading.Event(), threading.Event(), list[str]()

    def judge(job: Job) -> tuple[Verdict, float]:
        judged.append(job.source)
        begun.set()
        assert go_on.wait(30)
        return Verdict(), math.inf

    monkeypatch.setattr(compiling, "_judge", judge)
    blocking, *others, shared = [constraint.regex(pattern, "it") for pattern in ("a", "b", "c", "d")]
    waiting = [compiling.compile(blocking, "ann")]
    assert begun.wait(30)
    waiting += [compiling.compile(each, "ann") for each in (*others, shared)]
    waiting.append(compiling.compile(shared, "bob"))
    assert compiling.compile(shared, "bob") is waiting[-1]
    go_on.set()
    assert {future.result(30).error for future in waiting} == {None}
    assert judged == [each.source for each in (blocking, others[0], shared, others[1])]
    compiling.close()


def test_what_was_too_slow_may_be_tried_again(compiling: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    require(compiling, constraint.regex("a", "it"))
    monkeypatch.setattr(compiler, "DEADLINE_SECONDS", 0.2)
    monkeypatch.setattr(compiler, "SLOW_SECONDS", 0.0)
    [process] = children()
    os.kill(process.pid, signal.SIGSTOP)
    wanted = constraint.regex("b", "it")
    with pytest.raises(NotCompiled) as missing:
        compiling.require(wanted)
    assert "0.2 s" in str(missing.value.begin("").result(60).error)
    monkeypatch.setattr(compiler, "DEADLINE_SECONDS", 60.0)
    require(compiling, wanted)


def test_a_process_that_does_not_start(vocabulary: Vocabulary) -> None:
    for command in ((sys.executable, "-c", "pass"), ("/no/such/program",)):
        broken = GrammarCompiler(lambda: vocabulary, command)
        with pytest.raises(GrammarBusy):
            require(broken, constraint.regex("a", "it"))
        broken.close()
    assert not children()


def test_a_process_that_nobody_waits_for_ends_itself() -> None:
    """Whatever it is busy with, and whoever holds the interpreter."""
    busy = "from octavo.grammar.process import at_most\nwith at_most(0.2): 9**9**9"
    assert subprocess.run([sys.executable, "-c", busy], timeout=60, check=False).returncode == -signal.SIGALRM


def test_nothing_is_started_once_it_is_closed(vocabulary: Vocabulary) -> None:
    compiling = GrammarCompiler(lambda: vocabulary)
    require(compiling, constraint.regex("a", "it"))
    compiling.close()
    assert not children()
