"""How many requests a step of an ensemble computes at once; the others wait, in their order."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Of one step, over all requests.

    Args:
        most: at once; 0 for any number.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._waiting: dict[T, Callable[[T], None]] = {}
        self._letting_in = False

    def __len__(self) -> int:
        """That wait."""
        return len(self._waiting)

    def take(self, who: T, begin: Callable[[T], None]) -> bool:
        """Call `begin` with somebody whose turn it is: at once if it is so now, or when others have given theirs back.

        Returns:
            Whether it is so now.
        """
        if self._most and self._taken >= self._most:
            self._waiting[who] = begin
            return False
        self._taken += 1
        begin(who)
        return True

    def give_back(self, who: T) -> None:
        """Somebody needs no turn any more, whether it was had or waited for."""
        if self._waiting and self._waiting.pop(who, None) is not None:
            return
        self._taken -= 1
        if not self._waiting:
            return
        if self._letting_in:  # whoever began may have ended at once: that is seen there
            return
        self._letting_in = True
        try:
            while self._waiting and self._taken < self._most:
                following = next(iter(self._waiting))
                begin = self._waiting.pop(following)
                self._taken += 1
                begin(following)
        finally:
            self._letting_in = False
