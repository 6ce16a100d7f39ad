"""A model one can predict: its logits are a hash of the tokens it finds in the pages.

`ToyExecutor` stores the tokens themselves as "keys and values" and reads them back through the page table, as attention
would. So a sequence whose pages were shared, copied, evicted or overwritten wrongly continues differently from
`continuation`, which never saw a page.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from octavo.backends.protocol import Batch, StepResult
from octavo.backends.reference.sampling import sample
from octavo.engine.request import SamplingParams

VOCAB = 40


def toy_logits(context: np.ndarray) -> np.ndarray:
    """Float32[VOCAB] from Int32[n]: any change of any token or of the order changes all of them."""
    return _toy_logits(tuple(context.tolist()))


@lru_cache(2**16)
def _toy_logits(context: tuple[int, ...]) -> np.ndarray:
    seed = 1469598103934665603
    for token in context:
        seed = (seed ^ (token + 1)) * 1099511628211 % 2**64
    logits: np.ndarray = np.random.Generator(np.random.Philox(key=seed)).normal(size=VOCAB).astype(np.float32) * 3
    logits.flags.writeable = False  # whoever asks again gets the same
    return logits


def continuation(prompt: list[int], params: SamplingParams, index: int = 0) -> list[int]:
    """What any engine must generate for this prompt: one token after the other, without pages or batches."""
    from octavo.backends.protocol import LogitRows

    tokens = list(prompt)
    for _ in range(params.max_tokens):
        logits = toy_logits(np.array(tokens, np.int32))[None]
        rows = LogitRows(
            rows=np.zeros(1, np.int32),
            targets=np.full(1, -1, np.int32),
            positions=np.array([len(tokens)], np.int64),
            seeds=np.array([(params.seed + index) % 2**64], np.uint64),
            temperature=np.array([params.temperature], np.float32),
            top_k=np.array([params.top_k], np.int32),
            top_p=np.array([params.top_p], np.float32),
            typical_p=np.array([params.typical_p], np.float32),
            min_p=np.array([params.min_p], np.float32),
            num_logprobs=np.array([-1], np.int32),
        )
        token = int(sample(logits, rows).tokens[0])
        tokens.append(token)
        if token in params.stop_token_ids:
            break
    return tokens[len(prompt) :]


@dataclass
class Done:
    value: StepResult

    def result(self) -> StepResult:
        return self.value


class ToyExecutor:
    """An `Executor` for `toy_logits`.

    `breaks_on`: a token whose presence in a step makes the step raise. `faults`: each of the next steps takes one,
    and raises before it computes anything ("submit"), after that ("result"), or not ("").
    """

    vocab_size = VOCAB

    def __init__(self, num_pages: int, page_size: int = 4, breaks_on: int | None = None) -> None:
        self.num_pages, self.page_size, self.breaks_on = num_pages, page_size, breaks_on
        self.memory = np.full((num_pages, page_size), -7, np.int32)
        self.batches: list[Batch] = []
        self.faults: list[str] = []

    def submit(self, batch: Batch) -> Done:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "submit":
            raise MemoryError
        done = self._compute(batch)
        if fault == "result":
            raise RuntimeError("the device was lost")
        return done

    def _compute(self, batch: Batch) -> Done:
        self.batches.append(batch)
        if self.breaks_on is not None and self.breaks_on in batch.tokens:
            raise ValueError("the model broke")
        for source, destination in batch.copies:
            self.memory[destination] = self.memory[source]
        assert len(np.unique(batch.slots)) == len(batch.slots), "two tokens of a step share a slot"
        self.memory.reshape(-1)[batch.slots] = batch.tokens
        logits = np.empty((len(batch.logits.rows), VOCAB), np.float32)
        for i, row in enumerate(batch.logits.rows):
            sequence = int(np.searchsorted(batch.query_starts, row, side="right")) - 1
            pages = batch.page_table[batch.table_rows[sequence]]
            visible = int(batch.positions[row]) + 1
            assert visible <= batch.context_lengths[sequence]
            context = self.memory[pages[: -(-visible // self.page_size)]].reshape(-1)[:visible]
            logits[i] = toy_logits(context)
        return Done(sample(logits, batch.logits))
