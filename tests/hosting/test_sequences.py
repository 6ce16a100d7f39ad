"""Sequences: each is computed request by request, in its order, by one instance, whatever else is asked for."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.hosting.errors import InferenceError
from octavo.hosting.lanes import SequenceBatch, SequenceId, Turn
from octavo.hosting.sequences import Sequences
from octavo.hosting.sequencing import Sequencing
from octavo.hosting.wire import SEQUENCE_END, SEQUENCE_START

START, END = SEQUENCE_START, SEQUENCE_END


def direct(slots: int = 2, **rest: Any) -> Sequencing:
    return Sequencing(max_batch_size=slots, slots=slots, **rest)


def oldest(slots: int = 4, batch: int = 2, **rest: Any) -> Sequencing:
    return Sequencing(max_batch_size=batch, slots=slots, oldest=True, **rest)


class Model:
    """A scheduler with the names of what it gives."""

    def __init__(self, sequencing: Sequencing, instances: int = 1) -> None:
        self.sequences: Sequences[str] = Sequences(sequencing, "m", instances)

    def push(self, name: str, sequence: SequenceId, flags: int = 0, now: float = 0.0, **rest: Any) -> Turn[str]:
        return self.sequences.push(name, sequence=sequence, flags=flags, now=now, **rest)

    def batch(self, now: float = 0.0) -> SequenceBatch[str] | None:
        found = self.sequences.take(now)
        return found if isinstance(found, SequenceBatch) else None

    def names(self, now: float = 0.0) -> list[str]:
        """Of the next batch, which is computed at once."""
        batch = self.batch(now)
        if batch is None:
            return []
        self.sequences.note_done(batch, 0.0)
        return [each.request for each in batch.requests]

    def rest(self, now: float = 0.0) -> Iterator[list[str]]:
        while names := self.names(now):
            yield names


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sequence", "written"), [(7, "7"), ("a name", "a name"), (2**64 - 1, str(2**64 - 1))])
def test_the_first_request_says_so(sequence: SequenceId, written: str) -> None:
    with pytest.raises(InferenceError) as caught:
        Model(direct()).push("a", sequence)
    assert str(caught.value) == (
        f"inference request for sequence {written} to model 'm' must specify the START flag on the first request of "
        "the sequence; one without a request for 1 s is over"
    )


@pytest.mark.parametrize("sequence", [0, ""])
def test_a_request_belongs_to_a_sequence(sequence: SequenceId) -> None:
    with pytest.raises(InferenceError) as caught:
        Model(direct()).push("a", sequence, START)
    assert str(caught.value) == "inference request to model 'm' must specify a non-zero or non-empty correlation ID"


def test_after_the_end_it_begins_anew() -> None:
    model = Model(direct())
    model.push("a", 1, START | END)
    with pytest.raises(InferenceError, match="START"):
        model.push("b", 1)
    model.push("c", 1, START)
    assert list(model.rest()) == [["a"], ["c"]]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_sequence_keeps_its_place() -> None:
    model = Model(direct(3))
    for number in (1, 2, 3):
        model.push(f"{number}a", number, START)
    batch = model.batch()
    assert batch is not None
    assert batch.places == [0, 1, 2]
    model.push("3b", 3)
    model.push("1b", 1)
    assert model.batch() is None
    model.sequences.note_done(batch, 0.0)
    batch = model.batch()
    assert batch is not None
    assert [each.request for each in batch.requests] == ["1b", "3b"]
    assert batch.places == [0, 2]


def test_a_full_table_queues() -> None:
    """In the order in which the sequences came; those that end make room."""
    model = Model(direct(1))
    for number in (1, 2, 3):
        model.push(f"{number}a", number, START)
    model.push("2b", 2, END)
    model.push("1b", 1, END)
    model.push("3b", 3, END)
    assert list(model.rest()) == [["1a"], ["1b"], ["2a"], ["2b"], ["3a"], ["3b"]]


def test_other_shapes_are_computed_apart() -> None:
    for sequencing in (direct(3), oldest(3, 3)):
        model = Model(sequencing)
        for number, kind in ((1, "x"), (2, "y"), (3, "x")):
            model.push(str(number), number, START, kind=kind)
        assert list(model.rest()) == [["1", "3"], ["2"]]


def test_those_that_wait_for_longest_come_first() -> None:
    model = Model(oldest(4, 2))
    for number in (1, 2, 3):
        model.push(f"{number}a", number, START)
    model.push("1b", 1)
    assert list(model.rest()) == [["1a", "2a"], ["3a", "1b"]]


def test_a_batch_waits_for_others() -> None:
    model = Model(direct(4, max_queue_delay=1.0, minimum_slot_utilization=0.5))
    model.push("a", 1, START, now=5.0)
    assert model.sequences.take(5.5) == 6.0
    assert model.names(6.0) == ["a"]
    model.push("b", 1, now=6.5)
    model.push("c", 2, START, now=6.6)
    assert model.names(6.6) == ["b", "c"]


def test_a_batch_of_the_oldest_waits_for_others() -> None:
    model = Model(oldest(8, 8, max_queue_delay=1.0, preferred_batch_sizes=(2, 4)))
    model.push("a", 1, START, now=5.0)
    assert model.sequences.take(5.5) == 6.0
    model.push("b", 2, START, now=5.6)
    model.push("c", 3, START, now=5.6)
    assert model.sequences.take(5.6) == 6.0
    assert model.names(6.0) == ["a", "b"]
    assert model.names(6.6) == ["c"]


def test_instances_share_the_sequences() -> None:
    model = Model(direct(2), instances=2)
    for number in (1, 2, 3, 4, 5):
        model.push(str(number), number, START)
    one, other = model.batch(), model.batch()
    assert one is not None
    assert other is not None
    assert sorted(len(each.requests) for each in (one, other)) == [2, 2]
    assert one.lane is not other.lane
    assert model.batch() is None


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequencing", [direct(1), oldest(1, 1)])
def test_an_idle_sequence_is_ended(sequencing: Sequencing) -> None:
    model = Model(sequencing)
    model.push("1a", 1, START, now=0.0)
    model.push("2a", 2, START, now=0.1)
    batch = model.batch(0.2)
    assert batch is not None
    assert model.batch(5.0) is None  # it is being computed, and not idle
    model.sequences.note_done(batch, 5.0)
    assert model.sequences.take(5.5) == math.inf
    assert model.sequences.next_deadline == pytest.approx(6.2)
    assert model.names(6.3) == ["2a"]
    with pytest.raises(InferenceError, match="START"):
        model.push("1b", 1, now=6.4)


def test_a_request_that_comes_too_late_finds_its_sequence_over() -> None:
    """Also where nothing has happened since."""
    model = Model(direct(1, max_idle=1.0))
    model.push("1a", 1, START, now=0.0)
    assert model.names(0.0) == ["1a"]
    model.push("1b", 1, now=0.9)
    assert model.names(0.9) == ["1b"]
    with pytest.raises(InferenceError, match=r"must specify the START flag .* without a request for 1 s is over"):
        model.push("1c", 1, now=2.0)


def test_one_that_waits_for_a_slot_is_not_idle() -> None:
    model = Model(direct(1, max_idle=1.0))
    model.push("1a", 1, START, now=0.0)
    model.push("2a", 2, START, now=0.0)
    for moment in range(10):
        assert model.names(moment / 2) == (["1a"] if not moment else ["1b"])
        model.push("1b", 1, now=moment / 2)
    model.push("2b", 2, now=5.0)
    assert model.names(5.0) == ["1b"]
    assert [model.names(6.1), model.names(6.1)] == [["2a"], ["2b"]]


def test_one_that_waits_too_long_for_a_slot() -> None:
    model = Model(direct(1))
    model.push("1a", 1, START, now=0.0)
    model.push("2a", 2, START, now=0.0, timeout=2.0)
    model.push("2b", 2, now=0.5)
    assert model.sequences.refused(1.9) == []
    assert model.sequences.next_deadline == 2.0
    refused = model.sequences.refused(2.0)
    assert sorted(each.request for each, _ in refused) == ["2a", "2b"]
    assert {str(error) for _, error in refused} == {"timeout of the corresponding sequence has been expired"}
    with pytest.raises(InferenceError, match="START"):
        model.push("2c", 2, now=2.0)
    assert list(model.rest(2.0)) == [["1a"]]


def test_a_cancelled_request_ends_its_sequence() -> None:
    """The model would not know that it was left out."""
    model = Model(direct(1))
    turns = [model.push(name, 1, START if name == "a" else 0) for name in "abcd"]
    model.push("other", 2, START)
    batch = model.batch()
    assert batch is not None
    assert not model.sequences.cancel(turns[0])  # it is being computed
    assert model.sequences.cancel(turns[2])
    assert not model.sequences.cancel(turns[2])
    assert [each.request for each, _ in model.sequences.refused(0.0)] == ["d"]
    with pytest.raises(InferenceError, match="START"):
        model.push("e", 1)
    model.sequences.note_done(batch, 0.0)
    assert list(model.rest()) == [["b"], ["other"]]
    assert len(model.sequences) == 0


def test_one_that_begins_anew_while_it_goes_on() -> None:
    """Whoever did not end it, or whose end is still to be computed: the new one comes behind it, in its slot."""
    model = Model(direct(2))
    model.push("a", 1, START)
    model.push("b", 1, END)
    model.push("c", 1, START)
    model.push("d", 1, START)
    model.push("e", 1, END)
    assert list(model.rest()) == [["a"], ["b"], ["c"], ["d"], ["e"]]


def test_a_request_that_is_computed_again_and_again() -> None:
    model = Model(oldest(2, 2, iterative=True))
    one, two = model.push("one", 0), model.push("two", 0)
    flags = []
    for left in (2, 1, 0):
        batch = model.batch()
        assert batch is not None
        flags.append([each.flags for each in batch.requests])  # type: ignore[attr-defined]
        if left:
            model.sequences.again(one, 0.0)
        model.sequences.note_done(batch, 0.0)
    assert flags == [[START, START], [0], [0]]
    assert not two.waits
    assert model.batch() is None
    assert model.sequences.next_deadline == math.inf


# --- whatever happens -------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Requests, cancellations, batches and time, in any order."""

    @initialize(
        strategy=st.sampled_from(
            [
                direct(1),
                direct(3),
                oldest(2, 1),
                oldest(5, 3),
                direct(2, max_queue_delay=0.5, minimum_slot_utilization=1.0),
            ]
        ),
        instances=st.integers(1, 3),
    )
    def begin(self, strategy: Sequencing, instances: int) -> None:
        self.sequencing, self.instances = strategy, instances
        self.sequences: Sequences[tuple[int, int]] = Sequences(strategy, "m", instances)
        self.now = 0.0
        self.number = 0
        self.turns: list[Turn[tuple[int, int]]] = []
        self.sent: dict[int, list[int]] = defaultdict(list)
        self.given: dict[int, list[int]] = defaultdict(list)
        self.gone: set[int] = set()
        self.batches: list[SequenceBatch[tuple[int, int]]] = []

    @rule(
        sequence=st.integers(1, 5),
        flags=st.sampled_from([0, 0, START, START, END, START | END]),
        timeout=st.sampled_from([0.0, 0.0, 2.0]),
        kind=st.integers(0, 1),
    )
    def push(self, sequence: int, flags: int, timeout: float, kind: int) -> None:
        self.number += 1
        try:
            turn = self.sequences.push(
                (sequence, self.number), sequence=sequence, flags=flags, now=self.now, timeout=timeout, kind=kind
            )
        except InferenceError:
            assert not flags & START
        else:
            self.turns.append(turn)
            self.sent[sequence].append(self.number)

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(self.turns))
        waited = turn.waits
        assert self.sequences.cancel(turn) is waited
        if waited:
            self.gone.add(turn.request[1])

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.6, 1.5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for turn, _ in self.sequences.refused(self.now):
            assert not turn.waits
            self.gone.add(turn.request[1])

    @rule()
    def take(self) -> None:
        if len(self.batches) == self.instances:
            return
        batch = self.sequences.take(self.now)
        if isinstance(batch, SequenceBatch):
            self.check(batch)
            self.batches.append(batch)

    def check(self, batch: SequenceBatch[tuple[int, int]]) -> None:
        busy = {each.request[0] for other in self.batches for each in other.requests}
        sequences = [each.request[0] for each in batch.requests]
        assert len(set(sequences)) == len(sequences) <= self.sequencing.max_batch_size
        assert busy.isdisjoint(sequences)
        assert len({each.kind for each in batch.requests}) == 1
        assert batch.places == sorted(set(batch.places))
        assert batch.places[-1] < self.sequencing.max_batch_size
        assert all(each.lane is not batch.lane for each in self.batches)
        for each in batch.requests:
            sequence, number = each.request
            assert number not in self.gone
            self.given[sequence].append(number)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.2]))
    def done(self, data: st.DataObject, seconds: float) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        self.batches.remove(batch)
        self.sequences.note_done(batch, seconds)

    @invariant()
    def in_order(self) -> None:
        """Nothing overtakes anything of its own sequence, and what is missing was refused or cancelled."""
        for sequence, given in getattr(self, "given", {}).items():
            assert given == sorted(given)
            if given:
                before = [number for number in self.sent[sequence] if number < given[-1]]
                assert [number for number in before if number not in self.gone] == given[:-1]

    def teardown(self) -> None:
        """In the end all is computed, and nothing is left behind."""
        if not hasattr(self, "sequences"):
            return
        for _ in range(10_000):
            for batch in self.batches:
                self.sequences.note_done(batch, 0.0)
            self.batches.clear()
            self.now += 2.0
            for turn, _ in self.sequences.refused(self.now):
                self.gone.add(turn.request[1])
            self.take()
            if not self.batches and not len(self.sequences):
                break
        everything = {number for numbers in self.sent.values() for number in numbers}
        assert everything == self.gone | {number for numbers in self.given.values() for number in numbers}
        self.sequences.take(self.now + 10)
        left = self.sequences
        assert not left._open
        assert not left._last
        assert not left._backlog
        assert not left._idle
        assert all(lane.first_free == 0 and len(lane._free) == self.sequencing.slots for lane in left._lanes)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


# --- other numbers of instances ---------------------------------------------------------------------------------------


def all_of(model: Model) -> list[str]:
    """What is computed until nothing can be any more."""
    return sorted(name for names in model.rest() for name in names)


def test_sequences_that_wait_get_the_slots_of_new_instances() -> None:
    model = Model(direct(1))
    for number in (1, 2, 3):
        model.push(f"{number}a", number, START)
    assert model.names() == ["1a"]
    assert model.names() == []
    model.sequences.resize(3, 0.0)
    assert sorted(model.rest()) == [["2a"], ["3a"]]


def test_an_instance_that_leaves_ends_its_sequences_and_begins_none() -> None:
    model = Model(direct(2), 2)
    for number in (1, 2, 3):
        model.push(f"{number}a", number, START)
    list(model.rest())
    model.sequences.resize(1, 0.0)
    model.push("4a", 4, START)
    model.push("5a", 5, START)
    assert all_of(model) == [], "the slots of the one that stays are taken"
    for number in (1, 2, 3):
        model.push(f"{number}b", number, END)
    model.push("1c", 1, START)
    assert all_of(model) == ["1b", "1c", "2b", "3b", "4a"]
    for number in (4, 5, 1):
        model.push(f"{number}z", number, END)
    assert all_of(model) == ["1z", "4z", "5a", "5z"]
    assert not model.sequences.goes_on


def test_what_leaves_may_be_wanted_again() -> None:
    model = Model(direct(1), 2)
    for number in (1, 2):
        model.push(f"{number}a", number, START)
    batch = model.batch()
    assert batch is not None
    for instances in (1, 2, 1):
        model.sequences.resize(instances, 0.0)
    model.sequences.note_done(batch, 0.0)
    list(model.rest())
    for number in (1, 2):
        model.push(f"{number}b", number, END)
    model.push("3a", 3, START | END)
    assert all_of(model) == ["1b", "2b", "3a"]
    assert not model.sequences.goes_on
