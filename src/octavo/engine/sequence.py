"""A sequence: one prompt with one continuation, from arrival to its last token."""

from enum import Enum

import numpy as np

from octavo.backends.protocol import Float32, Int32
from octavo.engine.limits import Limits
from octavo.engine.pages import page_key
from octavo.engine.request import PromptLogprobs, Request
from octavo.grammar.matcher import Matcher


class Status(Enum):
    """Where a sequence is: waiting for its grammar to be compiled, in the queue, in a row of the table, or done."""

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class TokenCounts:
    """Which tokens penalties fall on, each once, and how often each was generated.

    Attributes:
        entries: Int32[2, capacity], ids and counts; the first `size` are known.
    """

    __slots__ = ("_place", "entries", "size")

    def __init__(self, prompt: Int32, outputs: Int32, capacity: int) -> None:
        self.entries: Int32 = np.zeros((2, capacity), np.int32)
        distinct = np.unique(prompt)
        self.size = len(distinct)
        self.entries[0, : self.size] = distinct
        self._place = {token: place for place, token in enumerate(distinct.tolist())}
        for token in outputs.tolist():
            self.add(token)

    def add(self, token: int) -> None:
        """Count a generated token."""
        place = self._place.setdefault(token, self.size)
        if place == self.size:
            self.entries[0, place] = token
            self.size += 1
        self.entries[1, place] += 1


class Sequence:
    """The tokens of one choice of a request, and the pages that hold their keys and values.

    Attributes:
        tokens: Int32[capacity], prompt and generated tokens; the first `length` are known.
        pages: the pages it owns, in order.
        keys: keys of its full pages as far as they were needed.
        published: how many of its pages are findable in the pool.
        paid: how many of its tokens were computed when it last lost its row.
        row: its row in the sequence table, -1 unless running.
        number: order of arrival; also the tie-break of every policy.
        forks: choices that wait for this one's prompt, to share its pages.
        delivered: generated tokens that the client already had when the request arrived (resumption).
        counts: what penalties need to know, from when it first runs; None without penalties.
        bias_ids, bias_values: Int32[n], Float32[n], what is added to logits, from when it first runs. Bans are -inf.
        spelling: the bytes of every token, if its limits need them.
        limits: what else it may not draw, from when it first runs; None without any.
        matcher: how far it has come in its grammar; None without one.
    """

    __slots__ = (
        "arrival",
        "bias_ids",
        "bias_values",
        "cached_tokens",
        "counts",
        "delivered",
        "first_scheduled",
        "forks",
        "index",
        "keys",
        "length",
        "limits",
        "matcher",
        "max_length",
        "number",
        "pages",
        "paid",
        "params",
        "prompt_length",
        "prompt_logprobs",
        "published",
        "request",
        "row",
        "salt_key",
        "spelling",
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
        self.paid = 0
        self.row = -1
        self.status = Status.WAITING
        self.forks: list[Sequence] = []
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.cached_tokens: int | None = None
        self.first_scheduled: float | None = None
        self.prompt_logprobs = PromptLogprobs()
        self.counts: TokenCounts | None = None
        self.bias_ids: Int32 = np.empty(0, np.int32)
        self.bias_values: Float32 = np.empty(0, np.float32)
        self.spelling: list[bytes] = []
        self.limits: Limits | None = None
        self.matcher: Matcher | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Who runs first and is preempted last: by priority, then by arrival."""
        return (self.request.priority, self.number)

    @property
    def num_outputs(self) -> int:
        """Generated tokens so far, delivered ones included."""
        return self.length - self.prompt_length

    @property
    def outputs(self) -> list[int]:
        """Generated tokens so far."""
        outputs: list[int] = self.tokens[self.prompt_length : self.length].tolist()
        return outputs

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt tokens must be scored: by the first choice alone, and until its first token was drawn."""
        return self.params.prompt_logprobs is not None and self.index == 0 and self.num_outputs == 0

    @property
    def is_limited(self) -> bool:
        """Whether some tokens may not come though its grammar lets them."""
        return self.limits is not None and not self.limits.none_left

    @property
    def is_masked(self) -> bool:
        """Whether a mask says what may be drawn: of its grammar, or of the only tokens that are allowed."""
        return self.matcher is not None or (self.limits is not None and self.limits.allowed is not None)

    def begin(self, vocab_size: int) -> None:
        """Prepare what is needed only once it runs: a queue is long."""
        params, prompt_length = self.params, self.prompt_length
        if self.counts is None and params.penalises:
            # The prompt's tokens matter to the repetition penalty alone.
            prompt = self.tokens[: prompt_length if params.repetition_penalty != 1.0 else 0]
            self.counts = TokenCounts(prompt, self.tokens[prompt_length : self.length], self.max_length)
        if self.limits is None and params.limits:
            self.limits = Limits(params, vocab_size, self.spelling)
            self.limits.follow(self.tokens[prompt_length : self.length])
        self.set_biases(vocab_size)

    def set_biases(self, vocab_size: int) -> None:
        """Find the biases as they are now, bans among them: of stop tokens until `min_tokens` are there.

        An id that the model cannot draw needs no ban: end-of-turn tokens may lie beyond the embedding.
        """
        biases = dict(self.params.logit_bias)
        if self.limits is not None:
            biases |= dict.fromkeys(self.limits.banned, -np.inf)
        if self.num_outputs < self.params.min_tokens:
            biases |= {token: -np.inf for token in self.stop_token_ids if 0 <= token < vocab_size}
        self.bias_ids = np.fromiter(biases.keys(), np.int32, len(biases))
        self.bias_values = np.fromiter(biases.values(), np.float32, len(biases))

    def append(self, tokens: list[int]) -> None:
        """Add generated tokens."""
        for token in tokens:
            self.tokens[self.length] = token
            self.length += 1
            if self.counts is not None:
                self.counts.add(token)

    def key_of_page(self, index: int, page_size: int) -> bytes:
        """The key of its `index`-th page, which must be full; computed once."""
        while len(self.keys) <= index:
            start = len(self.keys) * page_size
            parent = self.keys[-1] if self.keys else self.salt_key
            self.keys.append(page_key(parent, self.tokens[start : start + page_size]))
        return self.keys[index]
