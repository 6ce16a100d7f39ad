"""Fair shares: whoever waits gets as many tokens computed as any other who waits, whatever they ask for."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.queue import WaitingQueue
from octavo.engine.request import Request, SamplingParams
from octavo.engine.sequence import Sequence
from tests.engine.toy import ToyExecutor
from tests.properties import examples


def make_engine(num_pages: int = 200, **settings: int | bool) -> Engine:
    defaults: dict[str, int | bool] = {"max_num_seqs": 1, "max_num_batched_tokens": 16, "max_num_queued_reqs": 3000}
    config = EngineConfig(model="toy", page_size=4, **(defaults | settings))  # type: ignore[arg-type]
    return Engine(ToyExecutor(num_pages, 4), config, max_model_len=400)


class Clients:
    """Adds requests of tenants and tells in which order they ended, by tenant."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tenant_of: dict[str, str] = {}
        self.ended: list[str] = []

    def add(self, tenant: str, *, prompt: list[int] | None = None, max_tokens: int = 2, **params: object) -> None:
        name = str(len(self.tenant_of))
        self.tenant_of[name] = tenant
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, **params)  # type: ignore[arg-type]
        prompt = prompt or [1, 2, 3]
        self.engine.add(Request(request_id=name, prompt_token_ids=prompt, params=sampling, tenant=tenant))

    def step(self) -> None:
        for output in self.engine.step():
            if output.finish_reason is not None:
                self.ended.append(self.tenant_of[output.request_id])

    def run(self, until: int) -> list[str]:
        """The tenants of the next requests to end."""
        before = len(self.ended)
        while len(self.ended) < before + until:
            self.step()
        return self.ended[before:]


def test_a_tenant_that_arrives_while_none_waits_neither_overtakes_nor_is_overtaken() -> None:
    clients = Clients(make_engine())
    for _ in range(200):  # nobody waits for long: everyone was served all they asked for
        clients.add("busy")
        clients.run(1)
    for _ in range(40):
        clients.add("new")
    for _ in range(40):
        clients.add("busy")
    turns = Counter(clients.run(40))
    assert abs(turns["new"] - turns["busy"]) <= 2


def test_a_tenant_that_was_idle_gets_no_credit_and_no_debt() -> None:
    clients = Clients(make_engine())
    for _ in range(1000):
        clients.add("steady")
    clients.run(300)
    for _ in range(40):
        clients.add("late")
    turns = Counter(clients.run(60))
    assert abs(turns["steady"] - turns["late"]) <= 2
    clients.run(20)  # the late one has none left, waits no more, and comes again
    for _ in range(20):
        clients.add("late")
    turns = Counter(clients.run(30))
    assert abs(turns["steady"] - turns["late"]) <= 2


def test_what_is_generated_counts_and_not_what_may_be() -> None:
    clients = Clients(make_engine())
    everything = tuple(range(40))  # the first token stops
    for _ in range(60):
        clients.add("open", max_tokens=300, stop_token_ids=everything)
        clients.add("named", max_tokens=1)
    turns = Counter(clients.run(60))
    assert abs(turns["open"] - turns["named"]) <= 2


def test_long_answers_have_fewer_turns() -> None:
    clients = Clients(make_engine())
    for _ in range(100):
        clients.add("long", prompt=[1], max_tokens=40)
        clients.add("short", prompt=[1], max_tokens=4)
    turns = Counter(clients.run(50))
    assert turns["short"] / turns["long"] == pytest.approx(10, rel=0.35)


def test_what_a_cached_prefix_spares_is_not_charged() -> None:
    clients = Clients(make_engine())
    prompt = [1, 2, 3, 4] * 20
    clients.add("cached", prompt=prompt, max_tokens=1)
    clients.run(1)
    for number in range(60):
        clients.add("cached", prompt=[*prompt, number % 40], max_tokens=1)
        clients.add("plain", prompt=[number % 40], max_tokens=1)
    turns = Counter(clients.run(40))
    assert abs(turns["cached"] - turns["plain"]) <= 2


def test_nothing_is_charged_twice_after_a_preemption() -> None:
    charged: Counter[str] = Counter()
    # Nothing is cached, so that all is computed again.
    engine = make_engine(num_pages=14, max_num_seqs=4, enable_prefix_caching=False)
    charge = engine.scheduler.waiting.charge

    def count(tenant: str, tokens: int) -> None:
        charged[tenant] += tokens
        charge(tenant, tokens)

    engine.scheduler.waiting.charge = count  # type: ignore[method-assign]
    clients = Clients(engine)
    for tenant in "abcdefgh":
        clients.add(tenant, prompt=[1, 2, 3, 4, 5], max_tokens=30)
    clients.run(8)
    assert engine.stats().preemptions > 0
    assert all(count <= 5 + 30 - 1 for count in charged.values())


def sequence(number: int, tenant: str, priority: int = 0) -> Sequence:
    request = Request(
        request_id=str(number),
        prompt_token_ids=[1],
        params=SamplingParams(max_tokens=1),
        tenant=tenant,
        priority=priority,
    )
    return Sequence(request, 0, number=number, arrival=0.0, salt_key=b"")


@examples(80)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 30)), min_size=20, max_size=120))
def test_those_who_wait_together_are_served_alike(work: list[tuple[str, int]]) -> None:
    """Between any two moments at which two tenants wait all along, what they were served differs by two requests."""
    queue = WaitingQueue()
    cost = {}
    for number, (tenant, tokens) in enumerate(work):
        cost[number] = tokens
        queue.push(sequence(number, tenant))
    served: Counter[str] = Counter()
    waiting = Counter(tenant for tenant, _ in work)
    while (head := queue.peek()) is not None:
        tenant = head.request.tenant
        assert served[tenant] == min(served[other] for other in waiting)
        queue.remove(head)
        queue.charge(tenant, cost[head.number])
        served[tenant] += cost[head.number]
        waiting[tenant] -= 1
        waiting += Counter()
        most = max((served[other] for other in waiting), default=0)
        least = min((served[other] for other in waiting), default=0)
        assert most - least <= 30


@examples(80)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9), st.booleans()), min_size=1, max_size=80))
def test_the_virtual_time_never_goes_back(events: list[tuple[str, int, bool]]) -> None:
    queue = WaitingQueue()
    time = 0
    for number, (tenant, tokens, arrives) in enumerate(events):
        if arrives or not len(queue):
            queue.push(sequence(number, tenant))
            assert queue._virtual_time >= time
            time = queue._virtual_time
            assert queue._served[tenant] >= time
        else:
            head = queue.peek()
            assert head is not None
            queue.remove(head)
            queue.charge(head.request.tenant, tokens)
    assert queue.requests == sum(queue._waiting_of_tenant.values())
