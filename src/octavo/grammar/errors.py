"""What can go wrong with a grammar, and what it is known by."""

import hashlib
import re

from octavo.errors import OctavoError


class GrammarError(OctavoError):
    """A grammar that is wrong, too large, or not to be followed any further.

    Attributes:
        path: where in the request, as far as that is known.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path

    @property
    def refusal(self) -> str:
        """What whoever asked for the grammar is told."""
        return f"'{self.path}' cannot be kept to: {self}"


MAX_CAUSE = 300

_IN_JSON = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")

_OPTION = re.compile(r"^oneOf constraints are not supported\..*")
"""It names an option that clients do not have."""


def cause(message: str) -> str:
    """The one line of llguidance's message that says what is wrong: regular expressions have it at the end."""
    lines = [line.strip() for line in message.splitlines() if line.strip() not in ("", "<non-verbose/>")]
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    found = _IN_JSON.sub("", said or (lines or ["it is not valid"])[0])
    return _OPTION.sub("oneOf is not supported where several of its schemas may hold at once; anyOf is", found)[
        :MAX_CAUSE
    ]


def digest(source: str) -> bytes:
    """What a grammar is known by: some are a million characters."""
    return hashlib.blake2b(source.encode(), digest_size=16).digest()
