"""What the engine and a backend say to each other: a `Batch` of plain arrays in, a `StepResult` out.

This is the one place where the shapes and dtypes are fixed. A batch holds nothing but arrays, so that it can be sent
to another rank as it is. Symbols used below:

    T  tokens of this step, all sequences concatenated, no padding
    S  sequences that take part in this step
    L  rows of logits wanted (a sequence in the middle of its prompt wants none, one whose prompt is scored several)
    P  width of the page table (pages a sequence may own at most)
    V  vocabulary size
    M  masks
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

SAMPLE = -1
"""The value in `LogitRows.targets` that asks the backend to draw the token."""

NOT_FINITE = -2
"""In `StepResult.tokens`: the row's logits are no distribution, because some are NaN or infinite or all are -inf."""

NOTHING_ALLOWED = -3
"""In `StepResult.tokens`: mask and biases leave no token that may be drawn."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """What makes a row's tokens less likely that the sequence has already; applied in the order of the fields.

    Row i has the tokens `ids[starts[i]:starts[i + 1]]`, each once; a row without penalties has none.

    Attributes:
        repetition: Float32[L], logits of the row's tokens are divided by it when positive, multiplied when negative.
        frequency: Float32[L], subtracted once per occurrence in the output.
        presence: Float32[L], subtracted once from every token that occurs in the output.
        starts: Int32[L + 1].
        ids: Int32[n]. counts: Int32[n], how often the token was generated; 0 where the prompt alone has it.
    """

    repetition: Float32
    frequency: Float32
    presence: Float32
    starts: Int32
    ids: Int32
    counts: Int32


@dataclass(frozen=True, slots=True)
class Biases:
    """What is added to logits after penalties. -inf bans a token (end-of-sequence before `min_tokens`).

    Row i has the tokens `ids[starts[i]:starts[i + 1]]`, each once.

    Attributes:
        starts: Int32[L + 1]. ids: Int32[n]. values: Float32[n].
    """

    starts: Int32
    ids: Int32
    values: Float32


@dataclass(frozen=True, slots=True)
class LogitRows:
    """The rows of logits a step must produce, and what to do with each.

    Attributes:
        rows: Int32[L], index into `Batch.tokens` whose hidden state is projected; may repeat.
        targets: Int32[L], `SAMPLE` to draw a token, else the token whose log-probability is wanted (prompt logprobs).
        positions: Int64[L], position in the sequence of the token being drawn: the counter of the random numbers.
        seeds: UInt64[L], the key of the random numbers.
        temperature: Float32[L], 0 is greedy.
        top_k: Int32[L], 0 is off.
        top_p, typical_p, min_p: Float32[L]; 1, 1 and 0 are off.
        num_logprobs: Int32[L], -1 for none, else how many of the most probable tokens to report beside the chosen one.
        penalties, biases: None when no row has any.
        masks: UInt32[M, ceil(V / 32)], token t may be drawn where bit t % 32 of word t // 32 is set. Their content may
            be written while the forward pass runs (see `Executor.submit`). None when no row has one.
        mask_of_row: Int32[L], the row of `masks` that holds for it, -1 for none. Comes with `masks`.
    """

    rows: Int32
    targets: Int32
    positions: Int64
    seeds: UInt64
    temperature: Float32
    top_k: Int32
    top_p: Float32
    typical_p: Float32
    min_p: Float32
    num_logprobs: Int32
    penalties: Penalties | None = None
    biases: Biases | None = None
    masks: UInt32 | None = None
    mask_of_row: Int32 | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work.

    Keys and values of every token are written to its slot before attention reads any page, so that one kernel
    serves fresh prompts, chunks, prefix hits, decoding and draft verification. `copies` come before all else.

    Attributes:
        tokens: Int32[T], token ids.
        positions: Int32[T], position of each token in its sequence; one after the other within a step.
        slots: Int64[T], where the token's key and value go: `page * page_size + offset`.
        query_starts: Int32[S + 1], tokens of sequence s are `query_starts[s]:query_starts[s + 1]`.
        context_lengths: Int32[S], tokens in the sequence after this step; its last query sees that many.
        page_table: Int32[max_seqs, P], persistent: one row per running sequence.
        table_rows: Int32[S], the sequence's row in `page_table`.
        copies: Int32[C, 2], (source page, destination page): shared pages about to be written.
        logits: which rows to project and sample.
    """

    tokens: Int32
    positions: Int32
    slots: Int64
    query_starts: Int32
    context_lengths: Int32
    page_table: Int32
    table_rows: Int32
    copies: Int32
    logits: LogitRows


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step, row for row as in `Batch.logits`.

    Log-probabilities are those of the model itself: before penalties, bias, masks, temperature and truncation.

    Attributes:
        tokens: Int32[L], the token drawn (or the target); `NOT_FINITE` or `NOTHING_ALLOWED` where there can be none.
        logprobs: Float32[L], its log-probability; nan where none was asked for or there is no token.
        top_tokens: Int32[L, K], the K = max(num_logprobs) most probable tokens, best first, ties by lower id.
        top_logprobs: Float32[L, K].
    """

    tokens: Int32
    logprobs: Float32
    top_tokens: Int32
    top_logprobs: Float32


class Pending(Protocol):
    """A step that was submitted and may still be running."""

    def result(self) -> StepResult:
        """Wait for the step and return what it produced. When this raises, nothing of the step is running any more."""
        ...


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that was computed when it was submitted."""

    _result: StepResult

    def result(self) -> StepResult:
        """What the step produced."""
        return self._result


class Executor(Protocol):
    """One model on one device with its pool of KV pages."""

    @property
    def num_pages(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def submit(self, batch: Batch, masks_written: Callable[[], object] | None = None) -> Pending:
        """Start a step. Steps run in the order of submission; one that raised may be submitted again.

        Args:
            masks_written: returns once the batch's masks are what they should be, as `Future.result` does; None: they
                are already. It is called before sampling, while nothing else is left to compute; what it raises is
                the step's error.
        """
        ...
