"""The queue, held against a list that is searched from the front."""

import gc
import math
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.hosting.batching import Batching, QueuePolicy
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.queue import Queue, Waiting

LEVELS = Batching(
    max_batch_size=8,
    priority_levels=3,
    default_priority_level=2,
    default_policy=QueuePolicy(max_queue_size=5),
    policies={
        1: QueuePolicy(default_timeout=10.0, allow_timeout_override=False),
        3: QueuePolicy(default_timeout=4.0, delays=True),
    },
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(-1, 4), st.sampled_from("ab"), st.sampled_from([0.0, 1.0, 6.0, 20.0])),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("expire"), st.sampled_from([0.0, 0.5, 3.0, 11.0])),
    ),
    max_size=60,
)


def place(waiting: Waiting[int]) -> tuple[int, bool, int]:
    return waiting.level, waiting.delayed, waiting.number


@pytest.mark.hypothesis
@given(STEPS)
def test_whatever_happens(steps: list[tuple]) -> None:
    queue: Queue[int] = Queue(LEVELS)
    now, standing, everyone = 0.0, list[Waiting[int]](), list[Waiting[int]]()
    for number, step in enumerate(steps):
        match step:
            case ("push", priority, kind, timeout):
                level = priority if 1 <= priority <= 3 else 2
                full = level == 2 and sum(each.level == 2 for each in standing) >= 5
                fields = {"items": number % 3 + 1, "kind": kind, "now": now, "priority": priority, "timeout": timeout}
                if full:
                    with pytest.raises(InferenceError, match="Exceeds maximum queue size") as caught:
                        queue.push(number, **fields)
                    assert caught.value.code is Code.UNAVAILABLE
                    continue
                waiting = queue.push(number, **fields)
                expected = {1: 10.0, 2: timeout, 3: min(timeout or 4.0, 4.0)}[level]
                assert waiting.deadline == (now + expected if expected else math.inf)
                standing.append(waiting)
                everyone.append(waiting)
            case ("remove", which) if everyone:
                waiting = everyone[which % len(everyone)]
                assert queue.remove(waiting) == (waiting in standing)
                standing = [each for each in standing if each is not waiting]
            case ("expire", seconds):
                now += seconds
                late = [each for each in standing if each.deadline <= now and not each.delayed]
                expired = queue.expire(now)
                assert set(expired) == {each for each in late if each.level != 3}
                assert all(each.delayed for each in late if each.level == 3)
                standing = [each for each in standing if each not in expired]
        assert queue.requests == len(standing)
        for level in (1, 2, 3):
            before = sum(each.items for each in standing if each.level <= level and not each.delayed)
            assert queue.items_before(level) == before
        for kind in "ab":
            expected = sorted((each for each in standing if each.kind == kind), key=place)
            assert list(queue.of_kind(kind)) == expected
            assert queue.items_of(kind) == sum(each.items for each in expected)
        assert queue.first() is min(standing, key=place, default=None)
        waits_until = [each.deadline for each in standing if not each.delayed]
        assert queue.next_deadline == min(waits_until, default=math.inf)


def test_nothing_is_kept_of_what_has_left() -> None:
    class Big:
        pass

    queue: Queue[Big] = Queue(Batching(max_batch_size=8))
    kept = []
    for number in range(1000):
        big = Big()
        kept.append(weakref.ref(big))
        waiting = queue.push(big, now=float(number), timeout=1e9)
        if number % 2:
            queue.remove(waiting)
        else:
            queue.push(Big(), kind=number, now=float(number))
            queue.remove(waiting)
        del big, waiting
    gc.collect()
    assert not any(each() for each in kept)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0; batches have 1 item or more"),
        ({"preferred_batch_sizes": (4, 9)}, "preferred_batch_sizes has 9; give sizes from 1 to max_batch_size, 8"),
        ({"max_queue_delay": -1.0}, "max_queue_delay is -1 s"),
        ({"max_queue_delay": math.nan}, "max_queue_delay is nan s"),
        ({"latency_target": math.nan}, "latency_target is nan s"),
        ({"priority_levels": -1}, "priority_levels is -1"),
        ({"priority_levels": 2}, "default_priority_level is 0; there are levels 1 to 2"),
        ({"policies": {1: QueuePolicy()}}, "there is a policy for level 1, but levels 1 to 0"),
        ({"default_policy": QueuePolicy(max_queue_size=-1)}, "max_queue_size is -1"),
        ({"default_policy": QueuePolicy(default_timeout=math.inf)}, "default_timeout is inf s"),
    ],
)
def test_settings_that_cannot_work(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Batching(**({"max_batch_size": 8} | settings)).validate()
    assert message in str(caught.value)
    LEVELS.validate()
