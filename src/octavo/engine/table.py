"""The sequence table: arrays that persist from step to step, one row per running sequence.

A step's batch is gathered from these arrays, so that its Python work grows with what changed, not with what exists.
"""

import numpy as np

from octavo.backends.protocol import SAMPLE, Batch, Bool, Int32, Int64, LogitRows
from octavo.engine.sequence import Sequence


class SequenceTable:
    """Rows of plain numbers about the running sequences.

    Attributes:
        pages: Int32[rows, P], page table. length: Int32[rows], known tokens. computed: Int32[rows], tokens in pages.
        last_token: Int32[rows], the token at `length - 1`.
        adjusted: Bool[rows], its logits may be changed. scoring: Bool[rows], its prompt tokens' logprobs are wanted.
        held: Int32[rows], pages the sequence owns. active: Bool[rows], the row is taken.
        sequences: the sequence of each row, None where the row is free.
    """

    def __init__(self, num_rows: int, pages_per_sequence: int, page_size: int, vocab_size: int) -> None:
        self.page_size = page_size
        self.vocab_size = vocab_size
        self.pages: Int32 = np.zeros((num_rows, pages_per_sequence), np.int32)
        self.held: Int32 = np.zeros(num_rows, np.int32)
        self.active: Bool = np.zeros(num_rows, np.bool_)
        self.length: Int32 = np.zeros(num_rows, np.int32)
        self.computed: Int32 = np.zeros(num_rows, np.int32)
        self.last_token: Int32 = np.zeros(num_rows, np.int32)
        self.seeds = np.zeros(num_rows, np.uint64)
        self.temperature = np.zeros(num_rows, np.float32)
        self.top_k: Int32 = np.zeros(num_rows, np.int32)
        self.top_p = np.ones(num_rows, np.float32)
        self.min_p = np.zeros(num_rows, np.float32)
        self.num_logprobs: Int32 = np.full(num_rows, -1, np.int32)
        self.adjusted: Bool = np.zeros(num_rows, np.bool_)
        self.scoring: Bool = np.zeros(num_rows, np.bool_)
        self.sequences: list[Sequence | None] = [None] * num_rows
        self._free = list(range(num_rows - 1, -1, -1))

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
        self.last_token[row] = sequence.tokens[sequence.length - 1]
        self.seeds[row] = (params.seed + sequence.index) % 2**64
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.adjusted[row] = sequence.adjustment is not None
        self.scoring[row] = sequence.wants_prompt_logprobs

    def leave(self, sequence: Sequence) -> None:
        """Free the sequence's row."""
        self.sequences[sequence.row] = None
        self.active[sequence.row] = False
        sequence.end()
        self._free.append(sequence.row)
        sequence.row = -1

    def add_page(self, sequence: Sequence, page: int) -> None:
        """Append a page to the sequence's own list and to its row."""
        self.pages[sequence.row, len(sequence.pages)] = page
        sequence.pages.append(page)
        self.held[sequence.row] += 1

    def replace_last_page(self, sequence: Sequence, page: int) -> None:
        """Put another page in place of the last one (copy on write)."""
        self.pages[sequence.row, len(sequence.pages) - 1] = page
        sequence.pages[-1] = page

    def append_token(self, sequence: Sequence, token: int) -> None:
        """Add a generated token to the sequence and to its row."""
        sequence.append(token)
        self.length[sequence.row] = sequence.length
        self.last_token[sequence.row] = token

    def batch(self, rows: Int32, counts: Int32, copies: Int32) -> tuple[Batch, Int32]:
        """Gather the step in which row i computes its next `counts[i]` tokens.

        Args:
            rows: Int32[S]. counts: Int32[S], at least 1 each. copies: Int32[C, 2], pages to copy first.

        Returns:
            The batch, and Int32[L]: the table row of every row of logits.
        """
        starts = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        computed = self.computed[rows]
        if starts[-1] == len(rows):  # decoding alone: what follows would come to the same, at five times the cost
            owner, positions, tokens = rows, computed, self.last_token[rows]
        else:
            owner = np.repeat(rows, counts)
            # Position of every token: the sequence's computed tokens, counted up from its first token in this step.
            positions = np.repeat(computed - starts[:-1], counts) + np.arange(starts[-1], dtype=np.int32)
            tokens = self.last_token[owner]
        for i in ((counts > 1) | (computed + counts < self.length[rows])).nonzero()[0]:
            sequence = self.sequence(int(rows[i]))
            tokens[starts[i] : starts[i + 1]] = sequence.tokens[computed[i] : computed[i] + counts[i]]
        pages, offsets = np.divmod(positions, np.int32(self.page_size))
        slots: Int64 = self.pages[owner, pages].astype(np.int64) * self.page_size + offsets
        logits, logit_rows = self._logit_rows(rows, counts, starts, computed)
        batch = Batch(
            tokens=tokens,
            positions=positions,
            slots=slots,
            query_starts=starts,
            context_lengths=computed + counts,
            page_table=self.pages,
            table_rows=rows,
            copies=copies,
            logits=logits,
        )
        return batch, logit_rows

    def _logit_rows(self, rows: Int32, counts: Int32, starts: Int32, computed: Int32) -> tuple[LogitRows, Int32]:
        """Draw after the last token of every sequence that has no further known token; score prompts where wanted."""
        complete = (computed + counts == self.length[rows]).nonzero()[0]
        owner, token_rows = rows[complete], starts[complete + 1] - 1
        targets = np.full(len(complete), SAMPLE, np.int32)
        num_logprobs = self.num_logprobs[owner]
        adjustments = {}
        for i in self.adjusted[owner].nonzero()[0]:
            adjustment = self.sequence(int(owner[i])).adjustment
            if adjustment is not None:
                adjustments[int(i)] = adjustment
        for i in self.scoring[rows].nonzero()[0]:
            sequence = self.sequence(int(rows[i]))
            first = int(computed[i])
            number = max(min(first + int(counts[i]), sequence.prompt_length - 1) - first, 0)
            owner = np.append(owner, np.full(number, rows[i], np.int32))
            token_rows = np.append(token_rows, np.arange(starts[i], starts[i] + number, dtype=np.int32))
            targets = np.append(targets, sequence.tokens[first + 1 : first + 1 + number])
            num_logprobs = np.append(num_logprobs, np.full(number, sequence.params.prompt_logprobs, np.int32))
        logits = LogitRows(
            rows=token_rows,
            targets=targets,
            positions=self.length[owner].astype(np.int64),
            seeds=self.seeds[owner],
            temperature=self.temperature[owner],
            top_k=self.top_k[owner],
            top_p=self.top_p[owner],
            min_p=self.min_p[owner],
            num_logprobs=num_logprobs,
            adjustments=adjustments,
        )
        return logits, owner

    def sequence(self, row: int) -> Sequence:
        """The sequence in a taken row."""
        sequence = self.sequences[row]
        assert sequence is not None, f"row {row} of the sequence table is free"
        return sequence
