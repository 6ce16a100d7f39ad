"""The scheduler: which sequences compute how many tokens in the next step, and which pages they get.

There is no prefill phase and no decode phase. A running sequence has `computed` tokens in pages and wants more; each
step spends a budget of tokens: first one token for every sequence that is up to date with its prompt, then the rest of
the prompts, which share what is left so that a long one cannot stop a short one (Sarathi-Serve: Agrawal et al., 2024).
"""

from dataclasses import dataclass

import numpy as np

from octavo.backends.protocol import Int32
from octavo.engine.pages import PagePool
from octavo.engine.queue import WaitingQueue
from octavo.engine.request import PromptLogprobs
from octavo.engine.sequence import Sequence, Status
from octavo.engine.step import Step
from octavo.engine.table import SequenceTable


@dataclass(frozen=True, slots=True)
class _Blocked:
    """The head of the queue, and why it was not admitted: so that its prefix is not looked up again in every step.

    It needs fewer pages only when the next page of its prefix becomes findable: what others let go of becomes free.

    Attributes:
        needed: pages it was to take from the free ones. next_key: of the first page that was not found, if any.
    """

    sequence: Sequence
    needed: int
    next_key: bytes | None

    def stays(self, head: Sequence, available: int, pool: PagePool) -> bool:
        """Whether looking again would come to the same."""
        found = self.next_key is not None and pool.lookup(self.next_key) is not None
        return head is self.sequence and available < self.needed and not found


class Scheduler:
    """Decides steps, and moves sequences between the queue, the table and the end.

    Args:
        max_num_batched_tokens: tokens a step computes at most; at least the number of table rows.
        watermark: pages kept free when a sequence is admitted beside running ones, so that these can grow.
        prefix_caching: whether full pages are made findable and looked up.
    """

    def __init__(
        self,
        pool: PagePool,
        table: SequenceTable,
        *,
        max_num_batched_tokens: int,
        watermark: int,
        prefix_caching: bool = True,
    ) -> None:
        self.pool = pool
        self.table = table
        self.waiting = WaitingQueue()
        self.max_num_batched_tokens = max_num_batched_tokens
        self.watermark = watermark
        self.prefix_caching = prefix_caching
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._counts: Int32 = np.zeros(len(table.sequences), np.int32)
        self._copies: dict[Sequence, tuple[int, int]] = {}
        # Sequences that share the page they write next with another one, since a fork.
        self._shared_tails: list[Sequence] = []
        self._blocked: _Blocked | None = None

    @property
    def num_running(self) -> int:
        """Sequences that hold a row."""
        return len(self.table.sequences) - self.table.free_count

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return len(self.waiting) > 0 or self.num_running > 0

    def pages_for(self, tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-tokens // self.pool.page_size)

    # --- a step ---------------------------------------------------------------------------------------------------

    def plan(self, now: float) -> Step | None:
        """Choose the next step's work and reserve its pages; None when there is nothing to do.

        Nothing moves before `commit`: a plan that is never computed costs nothing but the pages it reserved, which the
        next one finds in place.
        """
        self._counts[:] = 0
        decoding = self._continue_running()
        budget = self.max_num_batched_tokens - decoding
        if budget > 0 and len(self.waiting):
            self._admit(budget, now)
        if decoding == self.num_running:
            rows, counts = self.table.everyone()
        else:
            if budget > 0:
                self._share_among_prompts(budget)
            rows = self._counts.nonzero()[0].astype(np.int32)
            counts = self._counts[rows]
        if not len(rows):
            return None
        copies = {sequence.row: pages for sequence, pages in self._copies.items()}
        return Step(rows, counts, self.table.departures, copies)

    def standing(self, step: Step) -> list[int]:
        """The places in a step whose sequences still hold the rows that they held when it was planned."""
        if self.table.departures == step.departures:
            return list(range(len(step.rows)))
        places: list[int] = (self.table.left[step.rows] <= step.departures).nonzero()[0].tolist()
        return places

    def commit(self, rows: Int32, counts: Int32) -> None:
        """Note that rows have their next `counts` tokens in pages; make the pages that became full findable.

        Accepted tokens must have been appended before. Of what was computed the tokens before the last known one count:
        nothing was computed for tokens that were accepted beyond it, and drafts that were not accepted are not there.

        Args:
            rows: Int32[n], of a planned step. counts: Int32[n].
        """
        table, page_size = self.table, self.pool.page_size
        before = table.computed[rows]
        after = np.minimum(before + counts, table.length[rows] - 1)
        table.computed[rows] = after
        if len(self.waiting):
            self._charge(rows, before, after)
        if self._copies:
            for row in rows.tolist():
                self._forget_copy(table.sequence(row))
        if not self.prefix_caching:
            return
        for i in (before // page_size != after // page_size).nonzero()[0]:
            sequence = table.sequence(int(rows[i]))
            for index in range(sequence.published, int(after[i]) // page_size):
                self.pool.publish(sequence.pages[index], sequence.key_of_page(index, page_size))
            sequence.published = int(after[i]) // page_size

    def _charge(self, rows: Int32, before: Int32, after: Int32) -> None:
        """Charge tenants with what was computed: not what a cached prefix spared, nor again after a preemption."""
        new = np.maximum(after - np.maximum(before, self.table.paid[rows]), 0)
        for row, tokens in zip(rows.tolist(), new.tolist(), strict=True):
            self.waiting.charge(self.table.sequence(row).request.tenant, tokens)

    def _continue_running(self) -> int:
        """One token for every sequence that lacks just one. Returns how many these are."""
        table = self.table
        self._separate_shared_tails()
        ready = table.length - table.computed == 1
        ready &= table.active
        growing = (ready & (table.computed == table.held * self.pool.page_size)).nonzero()[0]
        if len(growing):
            for sequence in sorted((table.sequence(int(row)) for row in growing), key=_order):
                if sequence.status is Status.RUNNING:
                    self._grow(sequence, len(sequence.pages) + 1)
            ready &= table.active  # whoever was preempted meanwhile is no longer there
        self._counts[ready] = 1
        return int(np.count_nonzero(ready))

    def _separate_shared_tails(self) -> None:
        """Copy on write: after a fork, all owners but the last get their own copy of the page they write next."""
        for sequence in self._shared_tails:
            if sequence.status is not Status.RUNNING:
                continue
            index = int(self.table.computed[sequence.row]) // self.pool.page_size
            if index < len(sequence.pages) and self._owners(shared := sequence.pages[index]) > 1:
                page = self._allocate(sequence)
                if page is None:
                    continue
                if self._owners(shared) > 1:
                    self.table.replace_page(sequence, index, page)
                    self._copies[sequence] = (shared, page)
                else:  # the other owners were preempted to find a page
                    self.pool.release(page)
        self._shared_tails.clear()

    def _owners(self, page: int) -> int:
        """Sequences that have the page in their tables."""
        return self.pool.references(page) - sum(source == page for source, _ in self._copies.values())

    def _forget_copy(self, sequence: Sequence) -> None:
        """Let go of the page that the sequence's own becomes a copy of.

        Until the step is committed it stays what it is, in whatever order and how often parts of the step are computed.
        """
        pages = self._copies.pop(sequence, None)
        if pages is not None:
            self.pool.release(pages[0])

    def _admit(self, budget: int, now: float) -> None:
        """Move waiting sequences into the table while rows, pages and a fair slice of the budget are left."""
        table, pool = self.table, self.pool
        prompts = (table.active & (self._counts == 0)).nonzero()[0]
        reserved = int((-(-table.length[prompts] // pool.page_size) - table.held[prompts]).sum())
        places = max(budget // pool.page_size, 1) - len(prompts)
        while places > 0 and table.free_count and (sequence := self.waiting.peek()) is not None:
            watermark = self.watermark if self.num_running else 0
            available = pool.free_count - reserved - watermark
            if self._blocked is not None and self._blocked.stays(sequence, available, pool):
                break
            cached, next_key = self._cached_pages(sequence)
            missing = self.pages_for(sequence.length) - len(cached)
            needed = missing + sum(pool.references(page) == 0 for page in cached)
            if needed > available:
                self._blocked = _Blocked(sequence, needed, next_key)
                break
            self._blocked = None
            self.waiting.remove(sequence)
            for page in cached:
                pool.share(page)
            reserved += missing
            places -= 1
            self._enter(sequence, cached, len(cached) * pool.page_size, now)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = min(len(cached) * pool.page_size, sequence.prompt_length)
                self.prefix_queries += sequence.length
                self.prefix_hits += len(cached) * pool.page_size

    def _share_among_prompts(self, budget: int) -> None:
        """Spend the budget on prompts in equal shares; what a short one leaves goes to the others."""
        table = self.table
        prompts = (table.active & (self._counts == 0)).nonzero()[0]
        if not len(prompts):
            return
        remaining = table.length[prompts] - table.computed[prompts]
        for place, i in enumerate(np.argsort(remaining, kind="stable")):
            count = min(int(remaining[i]), budget // (len(prompts) - place))
            self._counts[prompts[i]] = count
            budget -= count
        served = (table.sequence(int(row)) for row in prompts if self._counts[row])
        for sequence in sorted(served, key=_order):
            if sequence.status is Status.RUNNING:
                row = sequence.row
                self._grow(sequence, self.pages_for(int(table.computed[row] + self._counts[row])))

    # --- pages ----------------------------------------------------------------------------------------------------

    def _cached_pages(self, sequence: Sequence) -> tuple[list[int], bytes | None]:
        """Pages of the pool that hold the sequence's beginning, and the key of the first one that is not there, if any.

        At least its last token is always left to compute.
        """
        pages: list[int] = []
        if not self.prefix_caching or sequence.wants_prompt_logprobs:
            return pages, None
        for index in range((sequence.length - 1) // self.pool.page_size):
            key = sequence.key_of_page(index, self.pool.page_size)
            page = self.pool.lookup(key)
            if page is None:
                return pages, key
            pages.append(page)
        return pages, None

    def _grow(self, sequence: Sequence, pages: int) -> None:
        """Give the sequence pages until it owns this many, or preempt it."""
        while len(sequence.pages) < pages:
            page = self._allocate(sequence)
            if page is None:
                return
            self.table.add_page(sequence, page)

    def _allocate(self, sequence: Sequence) -> int | None:
        """A free page, if need be from the lowest-priority youngest sequence; None when that is `sequence` itself."""
        while not self.pool.free_count:
            victim = max((other for other in self.table.sequences if other is not None), key=_order)
            self._preempt(victim)
            if victim is sequence:
                return None
        return self.pool.allocate()

    # --- the life of a sequence -----------------------------------------------------------------------------------

    def _enter(self, sequence: Sequence, pages: list[int], computed: int, now: float) -> None:
        sequence.pages = pages
        sequence.published = computed // self.pool.page_size
        sequence.status = Status.RUNNING
        if sequence.first_scheduled is None:
            sequence.first_scheduled = now
        self.table.enter(sequence, computed)

    def fork(self, sequence: Sequence, now: float) -> None:
        """Let the choices that waited for this one's prompt share its pages.

        Each computes the last prompt token again, in its own copy of the last page, and draws from its logits. Choices
        for which no row is free join the queue; the prefix cache still spares them most of the prompt.
        """
        children, sequence.forks = sequence.forks, []
        self._blocked = None
        pages = sequence.pages[: self.pages_for(sequence.prompt_length)]
        for child in children:
            if self.table.free_count:
                for page in pages:
                    self.pool.share(page)
                child.cached_tokens = sequence.prompt_length - 1
                self._enter(child, list(pages), sequence.prompt_length - 1, now)
                self._shared_tails.append(child)
            else:
                self.waiting.push(child, front=True)
        self._shared_tails.append(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's pages; it computes them again later, mostly from the prefix cache."""
        self.preemptions += 1
        self._vacate(sequence)
        sequence.status = Status.WAITING
        sequence.prompt_logprobs = PromptLogprobs()
        self.waiting.push(sequence, front=True)

    def remove(self, sequence: Sequence) -> None:
        """End a sequence, wherever it is; its pages are free at once."""
        if sequence.status is Status.RUNNING:
            self._vacate(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        if sequence.forks:  # the next choice computes the prompt instead
            heir, *rest = sequence.forks
            sequence.forks, heir.forks = [], rest
            self.waiting.push(heir, front=True)

    def _vacate(self, sequence: Sequence) -> None:
        self._counts[sequence.row] = 0
        self._forget_copy(sequence)
        # The last page first: a prefix is worth more than what follows it.
        for page in reversed(sequence.pages):
            self.pool.release(page)
        sequence.pages = []
        self.table.leave(sequence)


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
