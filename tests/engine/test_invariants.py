"""A state machine over the engine: whatever is added, aborted, resumed, fails or runs out, what paging promises holds.

After everything that happens: references equal owners and copies under way; free and used pages partition the pool;
pages are findable only when full, and under the key of the tokens they hold; the table agrees with the sequences. At
the end every choice has generated exactly the tokens it must, but for those that failed, and the pool is all free.
"""

from collections import Counter

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.pages import page_key, root_key
from octavo.engine.request import FinishReason, Output, Request, RequestRefused, SamplingParams
from octavo.engine.sequence import Sequence
from tests.engine.toy import ToyExecutor, continuation
from tests.properties import examples

SALTS = ["", "tenant"]


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        num_pages=st.integers(6, 24),
        page_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(6, 20),
        caching=st.booleans(),
    )
    def start(self, num_pages: int, page_size: int, max_num_seqs: int, budget: int, caching: bool) -> None:
        self.executor = ToyExecutor(num_pages, page_size)
        config = EngineConfig(
            model="toy",
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            page_size=page_size,
            enable_prefix_caching=caching,
            max_num_queued_reqs=6,
        )
        self.engine = Engine(self.executor, config, max_model_len=24)
        self.requests: dict[str, Request] = {}
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.ended: set[tuple[str, int]] = set()
        self.count = 0

    @rule(
        # Few different tokens and lengths, so that prefixes are often shared.
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=14),
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 10),
        temperature=st.sampled_from([0.0, 1.0]),
        stop=st.sets(st.integers(0, 39), max_size=3),
        priority=st.integers(0, 1),
        salt=st.sampled_from(SALTS),
        resume_after=st.integers(0, 3),
    )
    def add(
        self,
        prompt: list[int],
        n: int,
        max_tokens: int,
        temperature: float,
        stop: set[int],
        priority: int,
        salt: str,
        resume_after: int,
    ) -> None:
        params = SamplingParams(
            n=n, max_tokens=max_tokens, temperature=temperature, stop_token_ids=tuple(sorted(stop)), seed=self.count
        )
        outputs: dict[int, list[int]] = {}
        if resume_after:
            for index in range(n):
                whole = continuation(prompt, params, index)
                outputs[index] = whole[: min(resume_after, len(whole) - 1)]
        self.count += 1
        request = Request(
            request_id=str(self.count),
            prompt_token_ids=prompt,
            params=params,
            outputs=outputs,
            resumed=resume_after > 0,
            priority=priority,
            tenant=salt,
            cache_salt=salt,
        )
        try:
            self.engine.add(request)
        except RequestRefused:
            return
        self.requests[request.request_id] = request
        for index in range(n):
            self.outputs[request.request_id, index] = list(outputs.get(index, []))

    @rule()
    def step(self) -> None:
        self.note(self.engine.step(), may_fail=False)

    @rule(faults=st.lists(st.sampled_from(["", "submit", "result"]), max_size=6))
    def step_that_fails(self, faults: list[str]) -> None:
        """Whole or in parts, once or again: whoever fails alone in a part has ended, everyone else goes on."""
        self.executor.faults = ["result", *faults]
        self.note(self.engine.step(), may_fail=True)
        self.executor.faults = []

    @rule()
    def plan_in_vain(self) -> None:
        self.engine.scheduler.plan(0.0)

    @rule(choice=st.integers(0, 1000), whole=st.booleans(), twice=st.booleans())
    def abort_before_commit(self, choice: int, whole: bool, twice: bool) -> None:
        step = self.engine.scheduler.plan(0.0)
        if step is None:
            return
        parts = self.engine.compute(step)
        self.abort(choice, whole)
        for _ in range(1 + twice):
            for part, accepted in parts:
                self.note(self.engine.commit(part, accepted), may_fail=False)

    @rule(most=st.integers(2, 5))
    def step_that_accepts_several(self, most: int) -> None:
        """As if a grammar had forced tokens: those that the model would draw."""
        step = self.engine.scheduler.plan(0.0)
        if step is None:
            return
        for part, accepted in self.engine.compute(step):
            for place, row in enumerate(part.rows):
                sequence = self.engine.scheduler.table.sequence(int(row))
                if accepted.tokens[place]:
                    request = sequence.request
                    whole = continuation(request.prompt_token_ids, request.params, sequence.index)
                    assert accepted.tokens[place] == whole[sequence.num_outputs :][:1]
                    accepted.tokens[place] = whole[sequence.num_outputs :][:most]
            self.note(self.engine.commit(part, accepted), may_fail=False)

    def note(self, outputs: list[Output], *, may_fail: bool) -> None:
        for output in outputs:
            key = (output.request_id, output.index)
            assert key not in self.ended, "output after the end"
            self.outputs[key] += output.token_ids
            request = self.requests[output.request_id]
            whole = continuation(request.prompt_token_ids, request.params, output.index)
            assert self.outputs[key] == whole[: len(self.outputs[key])]
            if output.finish_reason is not None:
                self.ended.add(key)
                if output.finish_reason is FinishReason.ERROR:
                    assert may_fail, output.error
                else:
                    assert self.outputs[key] == whole

    @rule(choice=st.integers(0, 1000), whole=st.booleans())
    def abort(self, choice: int, whole: bool) -> None:
        alive = sorted(set(self.outputs) - self.ended)
        if alive:
            request_id, index = alive[choice % len(alive)]
            self.engine.abort(request_id, None if whole else index)
            self.ended |= {key for key in alive if key[0] == request_id and (whole or key[1] == index)}

    @invariant()
    def pages_are_accounted_for(self) -> None:
        if not hasattr(self, "engine"):
            return
        pool, table = self.engine.scheduler.pool, self.engine.scheduler.table
        pool.check()
        running = [sequence for sequence in table.sequences if sequence is not None]
        stats = self.engine.stats()
        assert stats.running == len(running)
        assert stats.running + stats.waiting == len(set(self.outputs) - self.ended)
        owners = Counter(page for sequence in running for page in sequence.pages)
        owners.update(source for source, _ in self.engine.scheduler._copies.values())
        assert all(pool.references(page) == owners[page] for page in range(pool.num_pages))
        for row, sequence in enumerate(table.sequences):
            assert table.active[row] == (sequence is not None)
            if sequence is not None:
                self.check_row(row, sequence)

    def check_row(self, row: int, sequence: Sequence) -> None:
        pool, table = self.engine.scheduler.pool, self.engine.scheduler.table
        assert sequence.row == row
        assert table.held[row] == len(sequence.pages)
        assert list(table.pages[row, : table.held[row]]) == sequence.pages
        assert table.length[row] == sequence.length <= sequence.max_length
        assert table.computed[row] < table.length[row]
        assert table.computed[row] <= table.held[row] * pool.page_size
        # What is stored is what the sequence says, whoever else shares or shared these pages.
        source, copy = self.engine.scheduler._copies.get(sequence, (-1, -1))
        pages = [source if page == copy else page for page in sequence.pages]
        stored = self.executor.memory[pages].reshape(-1)[: table.computed[row]]
        assert np.array_equal(stored, sequence.tokens[: table.computed[row]])

    @invariant()
    def only_full_pages_are_findable(self) -> None:
        if not hasattr(self, "engine"):
            return
        pool = self.engine.scheduler.pool
        for request in self.requests.values():
            parent = root_key(request.tenant, request.cache_salt)
            tokens = np.array(request.prompt_token_ids, np.int32)
            for start in range(0, len(tokens) - pool.page_size + 1, pool.page_size):
                parent = page_key(parent, tokens[start : start + pool.page_size])
                page = pool.lookup(parent)
                if page is not None:
                    assert np.array_equal(self.executor.memory[page], tokens[start : start + pool.page_size])

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(5_000):
            if not self.engine.has_work:
                break
            self.step()
            self.pages_are_accounted_for()
        assert not self.engine.scheduler._copies
        assert set(self.outputs) == self.ended, "a request was lost"
        assert self.engine.scheduler.pool.used_count == 0
        assert self.engine.scheduler.table.free_count == len(self.engine.scheduler.table.sequences)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = examples(25, stateful_step_count=40)
