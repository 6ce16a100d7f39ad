"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from octavo.errors import OctavoError


class StopStrings:
    """Finds the stop string that is complete first in the joined text; of those that end at the same character the
    longest counts. The result does not depend on how the text is cut into pieces.

    An Aho-Corasick automaton (Aho and Corasick, "Efficient string matching", CACM 18, 1975): its state is the longest
    end of the text that begins a stop string, which is also the text that must be held back. Each character costs the
    same, however many stop strings there are.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """`include`: the matched stop string belongs to the output. Raises OctavoError for an empty stop string."""
        if "" in stops:
            raise OctavoError("A stop string is empty, which would match everywhere: leave it out.")
        self._include = include
        # Nodes of the trie in parallel lists; node 0 is the root.
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._fallback = self._link()
        self._node = 0
        self._held = ""

    def _insert(self, stop: str) -> None:
        node = 0
        for character in stop:
            if character not in self._next[node]:
                self._next[node][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._match.append(None)
            node = self._next[node][character]
        self._match[node] = stop

    def _link(self) -> list[int]:
        """For each node the node of its longest proper suffix in the trie, found level by level."""
        fallback = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            # A node without a stop of its own may still end with a shorter one.
            self._match[node] = self._match[node] or self._match[fallback[node]]
            for character, child in self._next[node].items():
                suffix = fallback[node]
                while suffix and character not in self._next[suffix]:
                    suffix = fallback[suffix]
                fallback[child] = self._next[suffix].get(character, 0)
                queue.append(child)
        return fallback

    def push(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """(text that is safe to send, the matched stop or None). Text after a match is dropped; push no more then.

        `armed` false: a stop string that is complete within this text is none; one that begins here and is complete
        later counts.
        """
        if len(self._next) == 1:
            return text, None
        node = self._node
        text = self._held + text
        for end in range(len(self._held), len(text)):
            character = text[end]
            while node and character not in self._next[node]:
                node = self._fallback[node]
            node = self._next[node].get(character, 0)
            if armed and (stop := self._match[node]) is not None:
                self._node, self._held = 0, ""
                return text[: end + 1 if self._include else end + 1 - len(stop)], stop
        while node and not self._next[node]:  # a whole stop string that did not count, and begins no longer one
            node = self._fallback[node]
        self._node = node
        safe = len(text) - self._depth[node]
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held, self._node = self._held, "", 0
        return held
