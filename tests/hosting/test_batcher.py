"""Which requests are computed together, and when."""

import heapq
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.hosting.batcher import Batch, Batcher
from octavo.hosting.batching import Batching, QueuePolicy
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.pace import Cost
from octavo.hosting.queue import Waiting
from tests.hosting.simulation import simulate

AT_ONCE = Batching(max_batch_size=8, max_queue_delay=0.0)
ADAPTING = Batching(max_batch_size=8)
COSTS = [(0.0, 10e-3), (1e-3, 5e-3), (3e-3, 1e-3), (0.5e-3, 0.5e-3)]
"""Seconds for an item and for a batch."""


def sizes(taken: Batch[int] | float) -> list[int]:
    assert isinstance(taken, Batch)
    return [waiting.request for waiting in taken.requests]


# What is set by hand.


def test_a_batch_waits_for_its_delay_or_until_it_is_full() -> None:
    batcher: Batcher[int] = Batcher(Batching(max_batch_size=3, max_queue_delay=0.01))
    assert batcher.take(0.0) == math.inf
    batcher.push(0, now=1.0)
    assert batcher.take(1.0) == 1.01
    batcher.push(1, now=1.005)
    assert batcher.take(1.005) == 1.01
    assert sizes(batcher.take(1.01)) == [0, 1]
    for number in range(4):
        batcher.push(number, now=2.0)
    assert sizes(batcher.take(2.0)) == [0, 1, 2]
    assert batcher.take(2.0) == 2.01
    assert len(batcher) == 1


def test_preferred_sizes() -> None:
    batcher: Batcher[int] = Batcher(Batching(max_batch_size=8, preferred_batch_sizes=(2, 4), max_queue_delay=0.01))
    batcher.push(0, now=0.0)
    assert batcher.take(0.0) == 0.01
    batcher.push(1, now=0.0)
    assert sizes(batcher.take(0.0)) == [0, 1]
    for number in range(7):
        batcher.push(number, now=0.0)
    assert sizes(batcher.take(0.0)) == [0, 1, 2, 3]
    assert sizes(batcher.take(0.0)) == [4, 5]
    assert batcher.take(0.005) == 0.01
    assert sizes(batcher.take(0.01)) == [6]


def test_other_kinds_are_kept_apart_and_nobody_waits_for_them() -> None:
    batcher: Batcher[int] = Batcher(Batching(max_batch_size=4, max_queue_delay=1.0))
    for number, kind in enumerate("abaab"):
        batcher.push(number, kind=kind, now=0.0)
    assert sizes(batcher.take(0.0)) == [0, 2, 3]
    assert batcher.take(0.0) == 1.0, "those that are left are of one kind, and wait for more"
    assert sizes(batcher.take(1.0)) == [1, 4]


def test_requests_of_several_items_are_not_torn() -> None:
    batcher: Batcher[int] = Batcher(AT_ONCE)
    for number, items in enumerate((5, 3, 4, 5, 8)):
        batcher.push(number, items=items, now=0.0)
    assert [sizes(batcher.take(0.0)) for _ in range(4)] == [[0, 1], [2], [3], [4]]
    with pytest.raises(InferenceError, match="batch-size must be <= 8, and is 9"):
        batcher.push(5, items=9, now=0.0)


def test_the_most_urgent_goes_first_and_takes_others_along() -> None:
    batcher: Batcher[int] = Batcher(
        Batching(max_batch_size=2, max_queue_delay=0.0, priority_levels=3, default_priority_level=2)
    )
    for number, priority in enumerate((3, 0, 1, 2, 1)):
        batcher.push(number, priority=priority, now=0.0)
    assert [sizes(batcher.take(0.0)) for _ in range(3)] == [[2, 4], [1, 3], [0]]


def test_who_waited_too_long_is_told_and_who_left_is_not_computed() -> None:
    batcher: Batcher[int] = Batcher(Batching(max_batch_size=4, max_queue_delay=5.0))
    late = batcher.push(0, now=0.0, timeout=1.0)
    gone = batcher.push(1, now=0.0, timeout=2.0)
    batcher.push(2, now=0.0)
    assert batcher.take(0.0) == 1.0, "to be told in time"
    assert batcher.expire(1.0) == [late]
    assert batcher.cancel(gone)
    assert not batcher.cancel(gone)
    assert not batcher.cancel(late)
    assert batcher.expire(3.0) == []
    assert sizes(batcher.take(5.0)) == [2]


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    policy = QueuePolicy(max_queue_size=25)
    batcher: Batcher[int] = Batcher(Batching(max_batch_size=2, max_queue_delay=0.0, default_policy=policy), instances=2)
    batcher.push(0, now=0.0, timeout=1e-6)  # nothing is known yet
    batch = batcher.take(0.0)
    assert isinstance(batch, Batch)
    batcher.note_done(batch, 1.0)
    for number in range(20):
        batcher.push(number, now=0.0)
    assert batcher.expected_wait() == pytest.approx(5.0)  # ten batches of one second, two at a time
    with pytest.raises(InferenceError, match="it may wait for 4 s, and would for 5 s") as caught:
        batcher.push(20, now=0.0, timeout=4.0)
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.retry_after == pytest.approx(5.0)
    for number in range(5):
        batcher.push(number, now=0.0, timeout=9.0)
    with pytest.raises(InferenceError, match="Exceeds maximum queue size: 25 requests wait already") as caught:
        batcher.push(25, now=0.0)
    assert caught.value.retry_after == pytest.approx(6.0)


def test_only_who_goes_before_counts_for_a_deadline() -> None:
    batcher: Batcher[int] = Batcher(
        Batching(max_batch_size=2, max_queue_delay=0.0, priority_levels=2, default_priority_level=2)
    )
    batcher.push(0, now=0.0)
    batch = batcher.take(0.0)
    assert isinstance(batch, Batch)
    batcher.note_done(batch, 1.0)
    for number in range(20):
        batcher.push(number, now=0.0)
    batcher.push(20, now=0.0, priority=1, timeout=0.5)
    assert sizes(batcher.take(0.0))[0] == 20
    with pytest.raises(InferenceError, match="would for 9 s"):
        batcher.push(21, now=0.0, timeout=3.0)


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"), st.integers(1, 8), st.sampled_from("ab"), st.integers(0, 3), st.sampled_from([0, 0.01])
        ),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("wait"), st.floats(0, 0.02)),
    ),
    max_size=60,
)
WAYS = [AT_ONCE, ADAPTING, Batching(max_batch_size=8, preferred_batch_sizes=(4, 8), max_queue_delay=0.01)]
URGENCIES = {"priority_levels": 3, "default_priority_level": 2, "policies": {3: QueuePolicy(delays=True)}}


@pytest.mark.hypothesis
@given(EVENTS, st.sampled_from([replace(each, **more) for each in WAYS for more in ({}, URGENCIES)]), st.integers(1, 3))
def test_every_request_is_computed_cancelled_or_expired(
    events: list[tuple], batching: Batching, instances: int
) -> None:
    batcher: Batcher[int] = Batcher(batching, instances)
    now, free, wake = 0.0, instances, math.inf
    running: list[tuple[float, int, Batch[int]]] = []
    pushed: list[Waiting[int]] = []
    ended: list[int] = []

    def go_on() -> None:
        """What happens at a moment: who waited too long is told, and free instances are given work."""
        nonlocal free, wake
        for waiting in batcher.expire(now):
            assert waiting.deadline <= now
            ended.append(waiting.request)
        wake = math.inf
        while free:
            taken = batcher.take(now)
            if not isinstance(taken, Batch):
                wake = taken
                assert wake > now or batcher.next_deadline <= now
                break
            assert 1 <= taken.items == sum(waiting.items for waiting in taken.requests) <= 8
            assert len({waiting.kind for waiting in taken.requests}) == 1
            assert all(waiting.deadline > now or waiting.delayed for waiting in taken.requests)
            places = [(waiting.level, waiting.delayed, waiting.number) for waiting in taken.requests]
            assert places == sorted(places)
            ended.extend(sizes(taken))
            free -= 1
            heapq.heappush(running, (now + 0.001 * taken.items + 0.003, len(ended), taken))

    def pass_until(end: float) -> None:
        nonlocal now, free
        while (moment := min(running[0][0] if running else math.inf, wake, batcher.next_deadline)) <= end:
            if moment == math.inf:
                return
            now = max(now, moment)
            while running and running[0][0] <= now:
                _, _, batch = heapq.heappop(running)
                batcher.note_done(batch, 0.001 * batch.items + 0.003)
                free += 1
            go_on()
        now = end

    for event in events:
        match event:
            case ("push", items, kind, priority, timeout):
                try:
                    fields = {"items": items, "kind": kind, "priority": priority, "timeout": timeout}
                    pushed.append(batcher.push(len(pushed), now=now, **fields))
                except InferenceError:
                    continue
                go_on()
            case ("cancel", which) if pushed and batcher.cancel(pushed[which % len(pushed)]):
                ended.append(pushed[which % len(pushed)].request)
                go_on()
            case ("wait", seconds):
                pass_until(now + seconds)
    pass_until(math.inf)
    assert sorted(ended) == list(range(len(pushed)))
    assert len(batcher) == 0
    assert free == instances


# What it finds out by itself.


@pytest.mark.parametrize(("per_item", "per_batch"), COSTS)
@pytest.mark.parametrize("clients", [1, 2, 5, 8, 12, 16, 32])
def test_clients_that_come_back_together_are_awaited(clients: int, per_item: float, per_batch: float) -> None:
    def seconds(items: int) -> float:
        return per_item * items + per_batch

    natural = simulate(AT_ONCE, seconds, clients=clients)
    adapting = simulate(ADAPTING, seconds, clients=clients)
    assert adapting.rate > 0.97 * natural.rate
    assert adapting.mean_wait < 1.03 * natural.mean_wait
    if per_batch >= 5e-3 and clients > 1:  # it pays
        assert adapting.mean_size > 0.88 * min(clients, 8)
    if clients == 1:
        assert adapting.waits == natural.waits, "nobody else is to come"


@pytest.mark.parametrize(("per_item", "per_batch"), COSTS)
@pytest.mark.parametrize("load", [0.1, 0.3, 0.6, 0.9])
def test_arrivals_at_random_hardly_wait_in_vain(load: float, per_item: float, per_batch: float) -> None:
    def seconds(items: int) -> float:
        return per_item * items + per_batch

    rate = load * 8 / seconds(8)
    natural = simulate(AT_ONCE, seconds, rate=rate)
    adapting = simulate(ADAPTING, seconds, rate=rate)
    assert adapting.mean_wait < 1.08 * natural.mean_wait
    assert adapting.mean_size > 0.95 * natural.mean_size


@pytest.mark.parametrize("pause", [(0.2e-3, 2e-3), (2e-3, 3e-3), (1e-3, 5e-3)])
@pytest.mark.parametrize("clients", [3, 5, 8])
def test_clients_out_of_step_come_together(clients: int, pause: tuple[float, float]) -> None:
    """Some wait while others are computed, which come back soon: all are answered together when these are awaited."""
    report = simulate(ADAPTING, lambda _: 10e-3, clients=clients, pause=pause)
    assert report.mean_size > 0.95 * clients
    assert report.percentile(0.98) < 10.5e-3 + pause[1]


def test_several_instances_share_the_work() -> None:
    one, two = (simulate(ADAPTING, lambda _: 0.01, clients=32, instances=count) for count in (1, 2))
    assert two.rate > 1.7 * one.rate


@pytest.mark.parametrize(("target", "held"), [(0.0, 1.875e-3), (11.5e-3, 1.5e-3), (5e-3, 0.0)])
def test_nobody_is_held_beyond_the_latency_target(target: float, held: float) -> None:
    batcher: Batcher[int] = Batcher(Batching(max_batch_size=2, latency_target=target))
    now = 0.0
    for _ in range(50):  # a second one always comes 1 ms after the first, and a batch takes 10 ms
        batcher.push(0, now=now)
        taken = batcher.take(now)
        second = batcher.push(1, now=now + 1e-3)
        if isinstance(taken, Batch):
            batcher.cancel(second)
        else:
            taken = batcher.take(now + 1e-3)
        assert isinstance(taken, Batch)
        batcher.note_done(taken, 10e-3)
        now += 100e-3
    batcher.push(0, now=now)
    taken = batcher.take(now)
    assert isinstance(taken, Batch) if not held else taken == pytest.approx(now + held)


def test_clients_that_come_later_are_noticed() -> None:
    report = simulate(ADAPTING, lambda _: 0.01, clients=1, later=4, requests=400)
    assert report.sizes[:50] == [1] * 50
    assert sum(report.sizes[-20:]) >= 95


def test_nobody_is_held_for_ever_by_those_who_come_and_leave() -> None:
    batcher: Batcher[int] = Batcher(Batching(max_batch_size=8))
    now = 0.0
    for _ in range(50):  # four come 1 ms after one another, and a batch takes 50 ms
        for number in range(4):
            batcher.push(number, now=now)
            taken = batcher.take(now)
            if isinstance(taken, Batch):
                batcher.note_done(taken, 50e-3)
            now += 1e-3
        if isinstance(taken := batcher.take(now + 1), Batch):
            batcher.note_done(taken, 50e-3)
        now += 200e-3
    batcher.push(0, now=now)
    began = now
    while not isinstance(batcher.take(now), Batch):
        other = batcher.push(1, now=now)
        taken = batcher.take(now)
        batcher.cancel(other)
        now += 1e-3
        if isinstance(taken, Batch):
            break
        assert now - began <= 52e-3


@pytest.mark.parametrize("instances", [4, 8])
def test_with_a_free_instance_nobody_is_awaited(instances: int) -> None:
    natural, adapting = (
        simulate(each, lambda _: 0.01, rate=250.0, instances=instances) for each in (AT_ONCE, ADAPTING)
    )
    assert adapting.mean_wait < 1.08 * natural.mean_wait


def test_a_slow_first_batch_is_forgotten() -> None:
    times = iter([10.0])
    natural, adapting = (simulate(each, lambda _: 2e-3, rate=20.0) for each in (AT_ONCE, ADAPTING))
    slow = simulate(ADAPTING, lambda _: next(times, 2e-3), rate=20.0, requests=4000)
    assert adapting.percentile(0.9) < 1.1 * natural.percentile(0.9)
    assert slow.percentile(0.9) < 1.1 * natural.percentile(0.9)


@pytest.mark.parametrize(("per_item", "per_batch"), COSTS)
def test_costs_are_found(per_item: float, per_batch: float) -> None:
    cost = Cost()
    assert cost.of(1) == 0.0, "nothing is known yet"
    for items in (3, 3):
        cost.note(items, per_item * items + per_batch)
    assert cost.of(3) == pytest.approx(per_item * 3 + per_batch)
    for items in (1, 8, 2):
        cost.note(items, per_item * items + per_batch)
    assert (cost.per_item, cost.per_batch) == pytest.approx((per_item, per_batch))
    for _ in range(60):
        cost.note(1, 0.5)
    assert cost.of(1) == pytest.approx(0.5), "what is long ago does not count"
