"""Errors whose message is meant for a person.

Every error a user can cause derives from `OctavoError`. Its message is one line that says what is wrong, with the
numbers, and what would work. The command line prints it and exits with status 1; the server makes an error body of it.
"""


class OctavoError(Exception):
    """Something the user can mend. `str(error)` is one complete line."""


class CheckpointError(OctavoError):
    """A model's files are missing, truncated or unreadable."""


class UnsupportedError(OctavoError):
    """A model architecture, weight format or feature that Octavo does not implement."""


class ModelNotFoundError(OctavoError):
    """A model name that no source knows, or a source that cannot be reached."""


class ConfigError(OctavoError):
    """Settings that cannot work, alone or together, found before weights are read.

    Attributes:
        settings: the names of those it is about, for whoever knows where they were written.
    """

    def __init__(self, message: str, *settings: str) -> None:
        super().__init__(message)
        self.settings = settings


class InvalidRequest(OctavoError, ValueError):
    """A request that can never be served as it is.

    Attributes:
        field: of the request, as its API calls it; None if it is about no single one.
        context_length: if the request is longer than that.
        lengths: tokens of the prompt and those asked for, if it is both together that are longer.
    """

    def __init__(
        self,
        message: str,
        field: str | None = None,
        *,
        context_length: int | None = None,
        lengths: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.context_length = context_length
        self.lengths = lengths
