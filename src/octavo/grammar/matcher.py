"""Grammars in an engine: compiled on one thread, and followed beside the steps on another.

The next token's mask is computed while the forward pass runs. What a grammar allows depends on the tokens before alone,
so that neither that nor preemption, resumption or the batch changes an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from octavo.grammar.errors import GrammarError, cause, digest

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLExecutor, LLMatcher, LLTokenizer
    from numpy.typing import NDArray

    from octavo.grammar.vocabulary import Vocabulary

CACHED = 256
"""Grammars that are kept compiled: one takes a few hundred kilobytes."""

CACHED_CHARACTERS = 4 << 20
"""Of their sources together: they take a multiple of that."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What follows from tokens that were drawn.

    Attributes:
        forced: tokens that come next because nothing else is allowed.
        complete: nothing can follow any more.
    """

    forced: list[int] = field(default_factory=list)
    complete: bool = False


class Matcher:
    """How far one choice has come in its grammar."""

    def __init__(self, inner: LLMatcher) -> None:
        self._inner = inner

    def begin(self) -> None:
        """Make sure that there is something to begin with. Raises GrammarError: nothing matches the grammar."""
        self._inner.compute_bitmask()
        if self._inner.is_error():
            raise GrammarError("nothing matches it")

    def copy(self) -> Matcher:
        """One that stands where this one does. Takes a tenth of a millisecond at most."""
        return Matcher(self._inner.deep_copy())

    def resume(self, tokens: Sequence[int]) -> None:
        """Follow tokens that were generated before. Raises GrammarError: the grammar does not allow them."""
        for token in tokens:
            self._consume(token)

    def advance(self, tokens: Sequence[int], room: int) -> Advance:
        """Follow tokens that were drawn, and what they leave no choice about.

        Args:
            room: forced tokens that are wanted at most.

        Raises:
            GrammarError: the grammar is too ambiguous to be followed any further.
        """
        self.resume(tokens)
        forced: list[int] = []
        while not self._inner.is_stopped() and len(forced) < room:
            # One at a time: the rest might be spelled otherwise when the request is resumed behind the first.
            following = self._inner.compute_ff_tokens()
            if not following:
                break
            self._consume(following[0])
            forced.append(following[0])
        return Advance(forced, self._inner.is_stopped())

    def _consume(self, token: int) -> None:
        self.check()
        if not self._inner.consume_token(token):
            self.check()
            raise GrammarError(f"the grammar does not allow token {token}")

    def check(self) -> None:
        """Raise GrammarError if the last mask could not be computed."""
        if self._inner.is_error():
            raise GrammarError(f"the grammar cannot be followed: {cause(self._inner.get_error())}")

    @property
    def raw(self) -> LLMatcher:
        """llguidance's."""
        return self._inner


class Grammars:
    """The grammars of one engine's requests.

    Args:
        wake: called, in any thread, when a grammar has been compiled.

    Attributes:
        vocabulary: the model's tokens, once they are known.
    """

    def __init__(self, wake: Callable[[], object] = lambda: None) -> None:
        self.wake = wake
        self.vocabulary: Vocabulary | None = None
        self._opened: Future[LLTokenizer] | None = None
        self._compiled: OrderedDict[bytes, Future[Matcher]] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._compiling = ThreadPoolExecutor(1, "octavo-grammars")
        self._masking = ThreadPoolExecutor(1, "octavo-masks")
        self._executor: LLExecutor | None = None

    def learn(self, vocabulary: Vocabulary) -> None:
        """The model's tokens are these. Several frontends say the same."""
        if self._opened is None:
            self.vocabulary = vocabulary
            self._opened = self._compiling.submit(vocabulary.open)

    def compile(self, source: str) -> Future[Matcher]:
        """A matcher at the beginning of a grammar; copy it. Its future raises GrammarError."""
        key = digest(source)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compiling.submit(self._compile, source)
            compiled.add_done_callback(lambda _: self.wake())
            self._sizes[key] = len(source)
            while len(self._compiled) > 1 and (
                len(self._compiled) > CACHED or sum(self._sizes.values()) > CACHED_CHARACTERS
            ):
                del self._sizes[self._compiled.popitem(last=False)[0]]
        self._compiled.move_to_end(key)
        return compiled

    def _compile(self, source: str) -> Matcher:
        if self._opened is None:
            raise GrammarError("nobody has said what the model's tokens are")
        return compile_grammar(self._opened.result(), source)

    def fill(
        self, matchers: Sequence[Matcher | None], masks: NDArray[np.uint32], allowed: NDArray[np.uint32] | None = None
    ) -> Future[None]:
        """Write the masks of what may come next.

        Args:
            masks: UInt32[M, ceil(V / 32)], one row for each of the matchers, which must be let alone meanwhile.
            allowed: the same shape, what may come as far as grammars do not matter; None for anything.
        """
        places = [(each.raw, row) for row, each in enumerate(matchers) if each is not None]
        return self._masking.submit(self._fill, places, masks, allowed)

    def _fill(
        self, matchers: list[tuple[Any, int]], masks: NDArray[np.uint32], allowed: NDArray[np.uint32] | None
    ) -> None:
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor(1)  # the other cores compute the step
        rows, words = masks.shape
        self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, words * 4, rows)
        if allowed is not None:
            masks &= allowed

    def close(self) -> None:
        """End the threads."""
        self._compiling.shutdown(wait=False, cancel_futures=True)
        self._masking.shutdown(wait=False, cancel_futures=True)


def compile_grammar(tokenizer: LLTokenizer, source: str) -> Matcher:
    """A grammar that is ready to be followed. Raises GrammarError."""
    from llguidance import LLMatcher, LLParserLimits

    # Its errors would print the whole grammar otherwise.
    limits = LLParserLimits(verbose_errors=False)
    inner = LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if inner.is_error():
        raise GrammarError(cause(inner.get_error()))
    return Matcher(inner)
