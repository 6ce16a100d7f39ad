"""A sequence: one prompt with one continuation, from arrival to its last token."""

from enum import Enum

import numpy as np

from octavo.backends.protocol import Adjustment, Int32
from octavo.engine.pages import page_key
from octavo.engine.request import Request, TokenLogprobs


class Status(Enum):
    """Where a sequence is: in the queue, in a row of the table, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """The tokens of one choice of a request, and the pages that hold their keys and values.

    Attributes:
        tokens: Int32[capacity], prompt and generated tokens; the first `length` are known.
        pages: the pages it owns, in order.
        keys: keys of its full pages as far as they were needed.
        published: how many of its pages are findable in the pool.
        row: its row in the sequence table, -1 unless running.
        number: order of arrival; also the tie-break of every policy.
        forks: choices that wait for this one's prompt, to share its pages.
        delivered: generated tokens that the client already had when the request arrived (resumption).
    """

    __slots__ = (
        "_adjustment",
        "_minimum_reached",
        "arrival",
        "cached_tokens",
        "delivered",
        "first_scheduled",
        "forks",
        "index",
        "keys",
        "length",
        "max_length",
        "number",
        "output_counts",
        "pages",
        "params",
        "prompt_length",
        "prompt_logprobs",
        "prompt_seen",
        "published",
        "request",
        "row",
        "salt_key",
        "status",
        "stop_token_ids",
        "tokens",
    )

    def __init__(self, request: Request, index: int, *, number: int, arrival: float, salt_key: bytes) -> None:
        prompt, outputs = request.prompt_token_ids, request.outputs.get(index, [])
        params = request.params
        self.request, self.index, self.params = request, index, params
        self.number, self.arrival = number, arrival
        self.prompt_length = len(prompt)
        self.length = len(prompt) + len(outputs)
        self.delivered = len(outputs)
        self.max_length = len(prompt) + params.max_tokens
        self.tokens: Int32 = np.empty(self.max_length, np.int32)
        self.tokens[: self.prompt_length] = prompt
        self.tokens[self.prompt_length : self.length] = outputs
        self.salt_key = salt_key
        self.pages: list[int] = []
        self.keys: list[bytes] = []
        self.published = 0
        self.row = -1
        self.status = Status.WAITING
        self.forks: list[Sequence] = []
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.cached_tokens: int | None = None
        self.first_scheduled: float | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.prompt_seen: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None
        self.output_counts: Int32 | None = None
        self._minimum_reached = False
        self._adjustment: Adjustment | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Who runs first and is preempted last: by priority, then by arrival."""
        return (self.request.priority, self.number)

    @property
    def num_outputs(self) -> int:
        """Generated tokens so far, delivered ones included."""
        return self.length - self.prompt_length

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt tokens must be scored: by the first choice alone, and until its first token was drawn."""
        return self.params.prompt_logprobs is not None and self.index == 0 and self.num_outputs == 0

    @property
    def adjustment(self) -> Adjustment | None:
        """What changes this sequence's logits now, if anything."""
        if not self._minimum_reached and self.num_outputs >= self.params.min_tokens:
            self._minimum_reached = True
            self._adjustment = self._make_adjustment()
        return self._adjustment

    def begin(self, vocab_size: int) -> None:
        """Prepare what is needed only while it runs: counts as wide as the vocabulary are too much for a queue."""
        params, prompt_length = self.params, self.prompt_length
        if params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            self.prompt_seen = np.zeros(vocab_size, np.bool_)
            self.prompt_seen[self.tokens[:prompt_length]] = True
            outputs = self.tokens[prompt_length : self.length]
            self.output_counts = np.bincount(outputs, minlength=vocab_size).astype(np.int32)
        self._minimum_reached = self.num_outputs >= params.min_tokens
        self._adjustment = self._make_adjustment()

    def end(self) -> None:
        """Let go of what `begin` made."""
        self.prompt_seen = self.output_counts = self._adjustment = None

    def append(self, tokens: list[int]) -> None:
        """Add generated tokens."""
        for token in tokens:
            self.tokens[self.length] = token
            self.length += 1
            if self.output_counts is not None:
                self.output_counts[token] += 1

    def key_of_page(self, index: int, page_size: int) -> bytes:
        """The key of its `index`-th page, which must be full; computed once."""
        while len(self.keys) <= index:
            start = len(self.keys) * page_size
            parent = self.keys[-1] if self.keys else self.salt_key
            self.keys.append(page_key(parent, self.tokens[start : start + page_size]))
        return self.keys[index]

    def _make_adjustment(self) -> Adjustment | None:
        params = self.params
        banned = np.array(params.stop_token_ids, np.int32) if not self._minimum_reached else None
        if self.output_counts is None and not params.logit_bias and (banned is None or not len(banned)):
            return None
        bias = params.logit_bias
        return Adjustment(
            prompt_seen=self.prompt_seen,
            output_counts=self.output_counts,
            repetition=params.repetition_penalty,
            frequency=params.frequency_penalty,
            presence=params.presence_penalty,
            bias_ids=np.fromiter(bias.keys(), np.int32, len(bias)) if bias else None,
            bias_values=np.fromiter(bias.values(), np.float32, len(bias)) if bias else None,
            banned_ids=banned,
        )
