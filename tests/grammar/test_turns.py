"""One piece of work after the other, for one tenant after the other."""

import threading
from collections.abc import Callable, Iterator

import pytest

from octavo.grammar.turns import NoTurn, Turns


@pytest.fixture
def turns() -> Iterator[Turns[str]]:
    made: Turns[str] = Turns("turns", 8)
    yield made
    made.close(NoTurn())


def test_tenants_take_turns(turns: Turns[str]) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[str]()

    def first() -> str:
        begun.set()
        assert go_on.wait(30)
        return "first"

    def work(name: str) -> Callable[[], str]:
        def noted() -> str:
            done.append(name)
            return name

        return noted

    blocking = turns.submit("a", first)
    assert begun.wait(30)
    futures = [turns.submit("a", work(f"a{number}")) for number in range(8)]
    with pytest.raises(NoTurn):
        turns.submit("a", work("too many"))
    futures += [turns.submit("b", work(f"b{number}")) for number in range(4)]
    for tenant in "ab":
        with pytest.raises(NoTurn):
            turns.submit(tenant, work("too many"))
    futures.append(turns.submit("c", work("c0")))
    go_on.set()
    assert blocking.result(30) == "first"
    assert sorted(future.result(30) for future in futures) == sorted(done)
    assert done == ["a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3", "b3", "a4", "a5", "a6", "a7"]


def test_what_fails_fails_alone(turns: Turns[str]) -> None:
    def fail() -> str:
        raise ValueError("no")

    failing, fine = turns.submit("a", fail), turns.submit("a", lambda: "fine")
    with pytest.raises(ValueError, match="no"):
        failing.result(30)
    assert fine.result(30) == "fine"


def test_what_waits_at_the_end_is_told(turns: Turns[str]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def first() -> str:
        begun.set()
        assert go_on.wait(30)
        return "first"

    blocking, waiting = turns.submit("a", first), turns.submit("b", lambda: "second")
    assert begun.wait(30)
    turns.close(LookupError("closed"))
    with pytest.raises(LookupError, match="closed"):
        waiting.result(30)
    with pytest.raises(RuntimeError):
        turns.submit("a", first)
    go_on.set()
    assert blocking.result(30) == "first"
