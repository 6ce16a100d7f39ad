"""The sequence table: arrays that persist from step to step, one row per running sequence.

A step's batch is gathered from these arrays, so that its Python work grows with what changed, not with what exists.
"""

from dataclasses import dataclass

import numpy as np

from octavo.backends.protocol import (
    SAMPLE,
    Batch,
    Biases,
    Bool,
    Float32,
    Int32,
    Int64,
    LogitRows,
    Penalties,
    UInt32,
    UInt64,
)
from octavo.engine.sequence import Sequence
from octavo.engine.step import Step
from octavo.grammar.matcher import Matcher


@dataclass(frozen=True, slots=True)
class Masked:
    """Rows of logits with a mask: what fills it, and what it allows in any case.

    Attributes:
        matchers: of the rows that a grammar holds for; None for others. allowed: UInt32[M, ceil(V / 32)].
        mask_of_row: Int32[L]. Both as in `LogitRows`, and None where there are none.
    """

    matchers: list[Matcher | None]
    allowed: UInt32 | None = None
    mask_of_row: Int32 | None = None


NO_COPIES: Int32 = np.zeros((0, 2), np.int32)
NO_MASKS = Masked([])
ALL_ALLOWED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a batch says of its rows whatever the sequences' tokens are: the same in every step of the same rows.

    Attributes:
        rows, counts, starts: Int32[S], Int32[S], Int32[S + 1], as in `Step` and `Batch.query_starts`.
        places, owner: Int32[L], the place in the step and the row of the table that a row of logits belongs to.
        token_rows, targets, num_logprobs, seeds, temperature, top_k, top_p, typical_p, min_p: [L], as in `LogitRows`.
        penalised: rows of logits that penalties change. biases: as in `LogitRows`.
        masked: the rows that have a mask.
    """

    rows: Int32
    counts: Int32
    starts: Int32
    places: Int32
    owner: Int32
    token_rows: Int32
    targets: Int32
    num_logprobs: Int32
    seeds: UInt64
    temperature: Float32
    top_k: Int32
    top_p: Float32
    typical_p: Float32
    min_p: Float32
    penalised: list[int]
    biases: Biases | None
    masked: Masked


class SequenceTable:
    """Rows of plain numbers about the running sequences.

    Attributes:
        pages: Int32[rows, P], page table. length: Int32[rows], known tokens. computed: Int32[rows], tokens in pages.
        last_token: Int32[rows], the token at `length - 1`.
        penalties: Float32[3, rows], repetition, frequency and presence. penalised, biased: Bool[rows], who has any.
        masked: Bool[rows], who follows a grammar or may draw certain tokens alone.
        scoring: Bool[rows], its prompt tokens' logprobs are wanted.
        paid: Int32[rows], tokens that were computed before the sequence was preempted, and charged then.
        held: Int32[rows], pages the sequence owns. active: Bool[rows], the row is taken.
        sequences: the sequence of each row, None where the row is free.
        departures: how many sequences have left. left: Int64[rows], the count when one last left the row.
    """

    def __init__(self, num_rows: int, pages_per_sequence: int, page_size: int, vocab_size: int) -> None:
        self.page_size = page_size
        self.vocab_size = vocab_size
        self.pages: Int32 = np.zeros((num_rows, pages_per_sequence), np.int32)
        self.held: Int32 = np.zeros(num_rows, np.int32)
        self.active: Bool = np.zeros(num_rows, np.bool_)
        self.length: Int32 = np.zeros(num_rows, np.int32)
        self.computed: Int32 = np.zeros(num_rows, np.int32)
        self.paid: Int32 = np.zeros(num_rows, np.int32)
        self.last_token: Int32 = np.zeros(num_rows, np.int32)
        self.seeds = np.zeros(num_rows, np.uint64)
        self.temperature = np.zeros(num_rows, np.float32)
        self.top_k: Int32 = np.zeros(num_rows, np.int32)
        self.top_p = np.ones(num_rows, np.float32)
        self.typical_p = np.ones(num_rows, np.float32)
        self.min_p = np.zeros(num_rows, np.float32)
        self.num_logprobs: Int32 = np.full(num_rows, -1, np.int32)
        self.penalties: Float32 = np.zeros((3, num_rows), np.float32)
        self.penalised: Bool = np.zeros(num_rows, np.bool_)
        self.biased: Bool = np.zeros(num_rows, np.bool_)
        self.masked: Bool = np.zeros(num_rows, np.bool_)
        self.scoring: Bool = np.zeros(num_rows, np.bool_)
        self.departures = 0
        self.left: Int64 = np.zeros(num_rows, np.int64)
        self.sequences: list[Sequence | None] = [None] * num_rows
        self._free = list(range(num_rows - 1, -1, -1))
        self._everyone: _Rows | None = None

    @property
    def free_count(self) -> int:
        """Rows that no sequence holds."""
        return len(self._free)

    def enter(self, sequence: Sequence, computed: int) -> None:
        """Give the sequence, whose pages hold its first `computed` tokens, a row."""
        row = self._free.pop()
        params = sequence.params
        sequence.row = row
        sequence.begin(self.vocab_size)
        self.sequences[row] = sequence
        self.active[row] = True
        self.held[row] = len(sequence.pages)
        self.pages[row, : len(sequence.pages)] = sequence.pages
        self.length[row] = sequence.length
        self.computed[row] = computed
        self.paid[row] = sequence.paid
        self.last_token[row] = sequence.tokens[sequence.length - 1]
        self.seeds[row] = (params.seed + sequence.index) % 2**64
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.typical_p[row] = params.typical_p
        self.min_p[row] = params.min_p
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.penalties[:, row] = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        self.penalised[row] = params.penalises
        self.biased[row] = len(sequence.bias_ids) > 0
        self.masked[row] = sequence.is_masked
        self.scoring[row] = sequence.wants_prompt_logprobs
        self._everyone = None

    def leave(self, sequence: Sequence) -> None:
        """Free the sequence's row."""
        self.sequences[sequence.row] = None
        sequence.paid = max(sequence.paid, int(self.computed[sequence.row]))
        self.active[sequence.row] = False
        self.departures += 1
        self.left[sequence.row] = self.departures
        self._everyone = None
        self._free.append(sequence.row)
        sequence.row = -1

    def add_page(self, sequence: Sequence, page: int) -> None:
        """Append a page to the sequence's own list and to its row."""
        self.pages[sequence.row, len(sequence.pages)] = page
        sequence.pages.append(page)
        self.held[sequence.row] += 1

    def replace_page(self, sequence: Sequence, index: int, page: int) -> None:
        """Put another page in place of its `index`-th one (copy on write)."""
        self.pages[sequence.row, index] = page
        sequence.pages[index] = page

    def append(self, sequence: Sequence, tokens: list[int]) -> None:
        """Add generated tokens, at least one, to the sequence and to its row."""
        row, banning = sequence.row, sequence.num_outputs < sequence.params.min_tokens
        sequence.append(tokens)
        self.length[row] = sequence.length
        self.last_token[row] = tokens[-1]
        changed = banning and sequence.num_outputs >= sequence.params.min_tokens
        if sequence.limits is not None:
            changed |= sequence.limits.follow(sequence.tokens[sequence.prompt_length : sequence.length])
        if changed:
            sequence.set_biases(self.vocab_size)
            self.biased[row] = len(sequence.bias_ids) > 0
            self.masked[row] = sequence.is_masked
            self._everyone = None

    def everyone(self) -> tuple[Int32, Int32]:
        """All taken rows, ascending, and one token for each: the same arrays until a sequence comes or goes."""
        if self._everyone is None:
            rows = self.active.nonzero()[0].astype(np.int32)
            self._everyone = self._rows(rows, np.ones(len(rows), np.int32), np.arange(len(rows), dtype=np.int32))
        return self._everyone.rows, self._everyone.counts

    def batch(self, step: Step) -> tuple[Batch, Int32, Masked]:
        """Gather what a step computes.

        Returns:
            The batch; Int32[L], the place in the step of every row of logits; and what fills its masks.
        """
        rows, counts = step.rows, step.counts
        computed = self.computed[rows]
        after = computed + counts
        if self._everyone is not None and rows is self._everyone.rows:  # all decode: most steps are such
            common = self._everyone
            owner, positions, tokens = rows, computed, self.last_token[rows]
        else:
            common = self._rows(rows, counts, (after == self.length[rows]).nonzero()[0].astype(np.int32))
            starts = common.starts
            owner = np.repeat(rows, counts)
            # Position of every token: the sequence's computed tokens, counted up from its first token in this step.
            positions = np.repeat(computed - starts[:-1], counts) + np.arange(starts[-1], dtype=np.int32)
            tokens = self.last_token[owner]
            for i in ((counts > 1) | (after < self.length[rows])).nonzero()[0]:
                known = self.sequence(int(rows[i])).tokens
                tokens[starts[i] : starts[i + 1]] = known[computed[i] : after[i]]
        pages, offsets = np.divmod(positions, np.int32(self.page_size))
        slots: Int64 = self.pages[owner, pages].astype(np.int64) * self.page_size + offsets
        batch = Batch(
            tokens=tokens,
            positions=positions,
            slots=slots,
            query_starts=common.starts,
            context_lengths=after,
            page_table=self.pages,
            table_rows=rows,
            copies=np.array(list(step.copies.values()), np.int32) if step.copies else NO_COPIES,
            logits=self._logit_rows(common, positions),
        )
        return batch, common.places, common.masked

    def _rows(self, rows: Int32, counts: Int32, complete: Int32) -> "_Rows":
        """Rows of logits: after the last token of every `complete` place, and after prompt tokens that are scored."""
        starts = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        places, token_rows = complete, starts[complete + 1] - 1
        targets = np.full(len(places), SAMPLE, np.int32)
        num_logprobs = self.num_logprobs[rows[places]]
        for i in self.scoring[rows].nonzero()[0]:
            sequence = self.sequence(int(rows[i]))
            first = int(self.computed[rows[i]])
            number = max(min(first + int(counts[i]), sequence.prompt_length - 1) - first, 0)
            places = np.append(places, np.full(number, i, np.int32))
            token_rows = np.append(token_rows, np.arange(starts[i], starts[i] + number, dtype=np.int32))
            targets = np.append(targets, sequence.tokens[first + 1 : first + 1 + number])
            num_logprobs = np.append(num_logprobs, np.full(number, sequence.params.prompt_logprobs, np.int32))
        owner = rows[places]
        return _Rows(
            rows=rows,
            counts=counts,
            starts=starts,
            places=places,
            owner=owner,
            token_rows=token_rows,
            targets=targets,
            num_logprobs=num_logprobs,
            seeds=self.seeds[owner],
            temperature=self.temperature[owner],
            top_k=self.top_k[owner],
            top_p=self.top_p[owner],
            typical_p=self.typical_p[owner],
            min_p=self.min_p[owner],
            penalised=[] if not self.penalised.any() else self._drawn(self.penalised[owner], targets),
            biases=self._biases(owner, targets) if self.biased.any() else None,
            masked=self._masked(owner, targets) if self.masked.any() else NO_MASKS,
        )

    def _masked(self, owner: Int32, targets: Int32) -> Masked:
        rows = self._drawn(self.masked[owner], targets)
        some = [self.sequence(int(owner[row])) for row in rows]
        if not some:
            return NO_MASKS
        allowed = None
        if any(sequence.limits is not None for sequence in some):
            allowed = np.full((len(some), -(-self.vocab_size // 32)), ALL_ALLOWED, np.uint32)
            for place, sequence in enumerate(some):
                if sequence.limits is not None and sequence.limits.allowed is not None:
                    allowed[place] = sequence.limits.allowed
        return Masked([sequence.matcher for sequence in some], allowed, _numbered(len(owner), rows))

    def _biases(self, owner: Int32, targets: Int32) -> Biases | None:
        rows = self._drawn(self.biased[owner], targets)
        some = [self.sequence(int(owner[row])) for row in rows]
        starts = _starts(len(owner), rows, [len(sequence.bias_ids) for sequence in some])
        if not some:
            return None
        return Biases(
            starts=starts,
            ids=np.concatenate([sequence.bias_ids for sequence in some]),
            values=np.concatenate([sequence.bias_values for sequence in some]),
        )

    def _penalties(self, common: "_Rows") -> Penalties:
        rows = common.owner[common.penalised].tolist()
        counts = [count for row in rows if (count := self.sequence(row).counts) is not None]
        repetition, frequency, presence = self.penalties.take(common.owner, axis=1)
        ids, numbers = np.concatenate([count.entries[:, : count.size] for count in counts], axis=1)
        return Penalties(
            repetition=repetition,
            frequency=frequency,
            presence=presence,
            starts=_starts(len(common.owner), common.penalised, [count.size for count in counts]),
            ids=ids,
            counts=numbers,
        )

    @staticmethod
    def _drawn(wanted: Bool, targets: Int32) -> list[int]:
        """Rows of logits that a token is drawn from, of those wanted."""
        rows: list[int] = (wanted & (targets == SAMPLE)).nonzero()[0].tolist()
        return rows

    def _logit_rows(self, common: "_Rows", positions: Int32) -> LogitRows:
        return LogitRows(
            rows=common.token_rows,
            targets=common.targets,
            positions=positions[common.token_rows].astype(np.int64) + 1,
            seeds=common.seeds,
            temperature=common.temperature,
            top_k=common.top_k,
            top_p=common.top_p,
            typical_p=common.typical_p,
            min_p=common.min_p,
            num_logprobs=common.num_logprobs,
            penalties=self._penalties(common) if common.penalised else None,
            biases=common.biases,
            masks=self._masks(common.masked),
            mask_of_row=common.masked.mask_of_row,
        )

    def _masks(self, masked: Masked) -> UInt32 | None:
        """Masks as they are before grammars have their say."""
        if masked.allowed is not None:
            return masked.allowed.copy()
        shape = len(masked.matchers), -(-self.vocab_size // 32)
        return np.empty(shape, np.uint32) if masked.matchers else None

    def sequence(self, row: int) -> Sequence:
        """The sequence in a taken row."""
        sequence = self.sequences[row]
        assert sequence is not None, f"row {row} of the sequence table is free"
        return sequence


def _numbered(count: int, rows: list[int]) -> Int32:
    """For each of `count` rows its place among `rows`, -1 for the others."""
    numbers = np.full(count, -1, np.int32)
    numbers[rows] = np.arange(len(rows))
    return numbers


def _starts(count: int, rows: list[int], sizes: list[int]) -> Int32:
    """Where the entries of each of `count` rows begin when `rows` have so many and the others none."""
    starts = np.zeros(count + 1, np.int32)
    starts[np.array(rows, np.intp) + 1] = sizes
    return np.cumsum(starts, out=starts)
