"""Batches by hand: sequences on pages of one's choosing, and the log-probabilities of every next token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from octavo.backends.protocol import NOT_FINITE, Batch, Biases, Executor, LogitRows, Penalties


@dataclass(frozen=True)
class Change:
    """What changes one row of logits. `seen`: token -> how often it was generated. `allowed`: None is any token."""

    seen: Mapping[int, int] = field(default_factory=dict)
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    biases: Mapping[int, float] = field(default_factory=dict)
    allowed: Iterable[int] | None = None


def changed(wanted: LogitRows, changes: Mapping[int, Change], vocab: int) -> LogitRows:
    """The same rows with the logits of some of them changed."""
    count = len(wanted.rows)
    each = [changes.get(row, Change()) for row in range(count)]
    masked = [row for row, change in enumerate(each) if change.allowed is not None]
    mask_of_row = np.full(count, -1, np.int32)
    mask_of_row[masked] = range(len(masked))
    return replace(
        wanted,
        penalties=Penalties(
            repetition=np.array([change.repetition for change in each], np.float32),
            frequency=np.array([change.frequency for change in each], np.float32),
            presence=np.array([change.presence for change in each], np.float32),
            starts=np.cumsum([0, *(len(change.seen) for change in each)]).astype(np.int32),
            ids=np.array([token for change in each for token in change.seen], np.int32),
            counts=np.array([number for change in each for number in change.seen.values()], np.int32),
        ),
        biases=Biases(
            starts=np.cumsum([0, *(len(change.biases) for change in each)]).astype(np.int32),
            ids=np.array([token for change in each for token in change.biases], np.int32),
            values=np.array([value for change in each for value in change.biases.values()], np.float32),
        ),
        masks=np.array([mask(each[row].allowed or (), vocab) for row in masked], np.uint32).reshape(len(masked), -1)
        if masked
        else None,
        mask_of_row=mask_of_row if masked else None,
    )


def mask(allowed: Iterable[int], vocab: int) -> np.ndarray:
    """UInt32[ceil(vocab / 32)] in which the bits of these tokens are set."""
    words = np.zeros(-(-vocab // 32), np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words


def rows(count: int, **columns: object) -> LogitRows:
    """`count` rows with the given columns, each a value for all rows or an array."""
    defaults: dict[str, tuple[object, type]] = {
        "rows": (np.arange(count), np.int32),
        "targets": (-1, np.int32),
        "positions": (np.arange(count), np.int64),
        "seeds": (0, np.uint64),
        "temperature": (1.0, np.float32),
        "top_k": (0, np.int32),
        "top_p": (1.0, np.float32),
        "typical_p": (1.0, np.float32),
        "min_p": (0.0, np.float32),
        "num_logprobs": (-1, np.int32),
    }
    arrays = {name: np.full(count, columns.pop(name, value), dtype) for name, (value, dtype) in defaults.items()}
    return LogitRows(**arrays, **columns)  # type: ignore[arg-type]


@dataclass
class Pages:
    """A sequence's tokens and the pages it was given."""

    tokens: list[int]
    pages: list[int]
    computed: int = 0


@dataclass
class Runner:
    """Runs sequences on an executor; every step gives the log-probabilities after each of its tokens."""

    executor: Executor
    free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = self.free or list(range(self.executor.num_pages))

    def sequence(self, tokens: Sequence[int]) -> Pages:
        """A new sequence on the next free pages."""
        count = -(-len(tokens) // self.executor.page_size)
        pages, self.free = self.free[:count], self.free[count:]
        return Pages(list(tokens), pages)

    def step(self, work: Sequence[tuple[Pages, int]], *, logits: bool = True) -> list[np.ndarray]:
        """Compute the next tokens of sequences: for each of them Float32[tokens, vocab] log-probabilities.

        Without `logits` no row of them is asked for, as in the middle of a prompt; nothing is returned then.
        """
        page_size, vocab = self.executor.page_size, self.executor.vocab_size
        width = max(len(sequence.pages) for sequence, _ in work)
        table = np.zeros((len(work), width), np.int32)
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for row, (sequence, count) in enumerate(work):
            table[row, : len(sequence.pages)] = sequence.pages
            span = range(sequence.computed, sequence.computed + count)
            tokens += sequence.tokens[span.start : span.stop]
            positions += span
            slots += [sequence.pages[p // page_size] * page_size + p % page_size for p in span]
            sequence.computed += count
        total = len(tokens)
        wanted = total if logits else 0
        rows = LogitRows(
            rows=np.arange(wanted, dtype=np.int32),
            targets=np.zeros(wanted, np.int32),
            positions=np.zeros(wanted, np.int64),
            seeds=np.zeros(wanted, np.uint64),
            temperature=np.zeros(wanted, np.float32),
            top_k=np.zeros(wanted, np.int32),
            top_p=np.ones(wanted, np.float32),
            typical_p=np.ones(wanted, np.float32),
            min_p=np.zeros(wanted, np.float32),
            num_logprobs=np.full(wanted, vocab, np.int32),
        )
        counts = [count for _, count in work]
        batch = Batch(
            tokens=np.array(tokens, np.int32),
            positions=np.array(positions, np.int32),
            slots=np.array(slots, np.int64),
            query_starts=np.cumsum([0, *counts]).astype(np.int32),
            context_lengths=np.array([sequence.computed for sequence, _ in work], np.int32),
            page_table=table,
            table_rows=np.arange(len(work), dtype=np.int32),
            copies=np.zeros((0, 2), np.int32),
            logits=rows,
        )
        result = self.executor.submit(batch).result()
        if (broken := (result.tokens == NOT_FINITE).nonzero()[0]).size:
            raise ValueError(f"the logits of rows {broken.tolist()} are not finite")
        if not logits:
            return []
        logprobs = np.empty((total, vocab), np.float32)
        np.put_along_axis(logprobs, result.top_tokens, result.top_logprobs, axis=1)
        return np.split(logprobs, np.cumsum(counts)[:-1])

    def run(self, tokens: Sequence[int], chunks: Sequence[int] | None = None) -> np.ndarray:
        """One sequence by itself, in chunks of the given sizes (the last one repeated): Float32[len(tokens), vocab]."""
        sequence = self.sequence(tokens)
        found = []
        sizes = list(chunks or [len(tokens)])
        while sequence.computed < len(tokens):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            found += self.step([(sequence, min(size, len(tokens) - sequence.computed))])
        return np.concatenate(found)
