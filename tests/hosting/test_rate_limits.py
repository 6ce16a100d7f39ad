"""Who may compute next: Triton's rate limiter, without processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.hosting.rate_limits import GLOBAL, Available, Instance, Limits, RateLimiter, Resource
from tests.properties import examples


def instance(name: str = "model", priority: int = 1, device: int = 0, **counts: int) -> Instance:
    return Instance(name, limits(priority, device, **counts))


def limits(priority: int = 1, device: int = 0, **counts: int) -> Limits:
    return Limits(tuple(Resource(device, name, count) for name, count in counts.items()), priority)


def limiter(*instances: Instance, **available: int) -> RateLimiter:
    made = RateLimiter([Available(name, count) for name, count in available.items()])
    for each in instances:
        made.check(each.model, [each.limits])
        made.add(each)
    return made


def permitted(limiter: RateLimiter) -> list[Instance]:
    """All that may compute now."""
    found = []
    while (each := limiter.next()) is not None:
        found.append(each)
    return found


def test_there_is_as_much_as_the_one_needs_that_needs_the_most() -> None:
    small, large = instance(R=2), instance(R=4)
    made = limiter(small, large)
    for each in (large, small):
        made.want([each])
    assert permitted(made) == [large]
    made.release(large)
    assert permitted(made) == [small]
    # Two of the small ones fit beside each other.
    other = instance(R=2)
    made.add(other)
    made.want([other])
    assert permitted(made) == [other]
    made.release(small)
    made.release(other)
    made.remove(large)
    made.want([small])
    made.want([other])
    assert len(permitted(made)) == 1  # now there are two


def test_what_is_given_holds_on_each_device_or_on_one() -> None:
    made = RateLimiter([Available("R", 1), Available("S", 1, 0), Available("S", 2, 1), Available("T", 1)])
    for device, expected in ((0, 1), (1, 2)):
        some = [instance(device=device, S=1) for _ in range(3)]
        for each in some:
            made.add(each)
            made.want([each])
        assert permitted(made) == some[:expected]
    some = [instance(device=device, R=1) for device in (0, 1, 1)]
    for each in some:
        made.add(each)
        made.want([each])
    assert permitted(made) == some[:2]  # one on each
    shared = [Instance("model", Limits((Resource(GLOBAL, "T", 1),))) for _ in range(2)]
    for each in shared:
        made.add(each)
        made.want([each])
    assert permitted(made) == shared[:1]


@pytest.mark.parametrize(
    ("available", "needs", "message"),
    [
        ({"R": 3}, {"R": 4}, 'count for "R" is limited to 3 .* minimum required count is 4 on device 0: .* R:4 makes'),
        ({"S": 3}, {"R": 1}, 'count for "R" is limited to 0 '),
        ({"R": 3}, {"R": 3}, ""),
    ],
)
def test_whoever_needs_more_than_there_is_is_refused(
    available: dict[str, int], needs: dict[str, int], message: str
) -> None:
    made = limiter(**available)
    if not message:
        made.check("model", [limits(**needs)])
        return
    with pytest.raises(ConfigError, match=message):
        made.check("model", [limits(), limits(**needs)])


def test_a_resource_is_of_all_devices_or_of_each() -> None:
    made = limiter(instance("other", R=1))
    shared = Limits((Resource(GLOBAL, "R", 1),))
    with pytest.raises(ConfigError, match=r"both global and device-specific .*: model has it as the former, other as"):
        made.check("model", [shared])
    with pytest.raises(ConfigError, match="both global and device-specific"):
        made.check("model", [Limits((Resource(GLOBAL, "S", 1), Resource(0, "S", 1)))])
    made.check("other", [shared])  # its predecessor ends soon


def test_one_of_half_the_priority_has_half_the_turns() -> None:
    some = [instance(priority=priority, R=1) for priority in (1, 2, 4)]
    made = limiter(*some)
    turns = dict.fromkeys(some, 0)
    for each in some:
        made.want([each])
    for _ in range(70):
        [each] = permitted(made)
        turns[each] += 1
        made.release(each)
        made.want([each])
    assert list(turns.values()) == [40, 20, 10]


def test_whoever_was_idle_or_comes_late_has_no_turns_to_make_up_for() -> None:
    """Triton gives it all turns until it has had as many as the others."""
    busy, idle = instance(R=1), instance(R=1)
    made = limiter(busy, idle)
    for _ in range(100):
        made.want([busy])
        assert permitted(made) == [busy]
        made.release(busy)
    late = instance(R=1)
    made.add(late)
    turns = dict.fromkeys([busy, idle, late], 0)
    for each in turns:
        made.want([each])
    for _ in range(30):
        [each] = permitted(made)
        turns[each] += 1
        made.release(each)
        made.want([each])
    assert list(turns.values()) == [10, 10, 10]


def test_whoever_waits_for_much_is_not_overtaken_by_those_who_need_little() -> None:
    """Nor does it hold up those who need something else, as it does in Triton."""
    large, small, elsewhere = instance(R=2), instance(R=1), instance(S=1)
    made = limiter(large, small, elsewhere)
    made.want([small])
    assert permitted(made) == [small]
    for each in (large, elsewhere):
        made.want([each])
    more = instance(R=1)
    made.add(more)
    made.want([more])
    assert permitted(made) == [elsewhere]
    made.release(small)
    assert permitted(made) == [large]


def test_a_turn_for_nothing_is_none() -> None:
    one, other = instance(R=1), instance(R=1)
    made = limiter(one, other)
    made.want([one])
    permitted(made)
    made.release(one, used=False)
    assert one.passed == other.passed


def test_of_several_instances_the_one_is_chosen_that_has_had_the_fewest_turns() -> None:
    some = [instance(priority=priority, R=1) for priority in (1, 3)]
    made = limiter(*some)
    chosen = []
    for _ in range(8):
        chosen.append(some.index(made.want(some)))
        made.release(permitted(made)[0])
    assert chosen.count(0) == 6


@pytest.mark.hypothesis
@examples(100)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from(["want", "release", "die"]), st.integers(0, 5)), max_size=60),
)
def test_no_more_is_given_than_there_is_and_nothing_is_lost(
    needs: list[tuple[int, int, int]], steps: list[tuple[str, int]]
) -> None:
    some = [instance(priority=priority, R=r, S=s) for r, s, priority in needs]
    made = limiter(*some)
    alive = list(some)

    def check() -> None:
        """Whatever computes fits, and whoever waits first does not."""
        permitted(made)
        for name in ("R", "S"):
            counts = [each.count for one in alive if one.computes for each in one.limits.resources if each.name == name]
            most = [each.count for one in alive for each in one.limits.resources if each.name == name]
            assert sum(counts) <= max(most, default=0)
        if any(one.waits for one in alive):
            assert any(one.computes and any(each.count for each in one.limits.resources) for one in alive)

    for what, number in steps:
        one = some[number % len(some)]
        if one not in alive:
            continue
        if what == "want" and not one.waits and not one.computes:
            made.want([one])
        elif what == "release" and one.computes:
            made.release(one)
        elif what == "die" and not any(other.computes for other in alive if other is not one):
            made.remove(one)
            alive.remove(one)
        check()
    for one in [each for each in alive if each.computes]:
        made.release(one)
    while any(one.waits for one in alive):  # everybody has a turn in the end
        for one in permitted(made):
            made.release(one)
    assert not any(made._taken.values())
