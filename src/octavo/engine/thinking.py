"""How long a sequence thinks before it answers: what is left of its budget is told by its own tokens alone."""

from collections.abc import Sequence

from octavo.engine.request import ThinkingBudget


class Thinking:
    """Follows one sequence until it has thought.

    Args:
        spelling: the bytes of every token.

    Attributes:
        forced: the token that must come next, since the budget is spent; None where the model decides.
        over: it thinks no more, or never has. followed: how many generated tokens were taken note of.
    """

    __slots__ = ("_begun", "_budget", "_ending", "_longest", "_spelling", "_text", "followed", "forced", "over")

    def __init__(self, budget: ThinkingBudget, spelling: Sequence[bytes]) -> None:
        self.forced: int | None = None
        self.over = False
        self._budget = budget
        self._spelling = spelling
        self._begun = budget.begun
        self._longest = max(map(len, budget.closes))
        self._text = b""
        self.followed = 0
        self._ending = 0
        self._force_if_spent()

    def follow(self, tokens: Sequence[int]) -> None:
        """Take note of the generated tokens that come next."""
        for token in tokens:
            if self.over:
                return
            self.followed += 1
            if self.forced is not None:
                self._ending += 1
            else:
                self._read(self._spelling[token] if token < len(self._spelling) else b"")
            self._force_if_spent()

    def _read(self, text: bytes) -> None:
        self._text += text
        if not self._begun:
            said = self._text.lstrip()
            opened = next((mark for mark in self._budget.opens if said.startswith(mark)), None)
            if opened is None:
                self.over = not any(mark.startswith(said) for mark in self._budget.opens)
                return
            self._begun, self._text = True, said.removeprefix(opened)
        self.over = any(mark in self._text for mark in self._budget.closes)
        self._text = self._text[-self._longest :]

    def _force_if_spent(self) -> None:
        """Once the end has begun it is written whole."""
        if self.over or not self._begun or self.followed < self._budget.tokens:
            return
        end = self._budget.end
        self.over = self._ending == len(end)
        self.forced = None if self.over else end[self._ending]
