"""A name that requests may use, and what stands behind it."""

from dataclasses import dataclass, field

from octavo.deployments.defaults import GenerationDefaults
from octavo.engine.client import EngineClient
from octavo.text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A language model, and the names it answers to.

    Attributes:
        name: the name in replies and metrics. aliases: other names that requests may use.
        root: where it came from (a repository id or path); clients load its tokenizer by this name.
        tokenizer: text to ids and back. engine: computes.
        max_model_len: tokens of prompt and output together, until the engine has said what it can hold.
        defaults: sampling parameters for what a request leaves open.
        created: seconds since the epoch.
    """

    name: str
    tokenizer: Tokenizer
    engine: EngineClient
    max_model_len: int
    created: int
    aliases: tuple[str, ...] = ()
    root: str = ""
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and output together that a request may have."""
        info = self.engine.info
        return self.max_model_len if info is None else info.max_model_len
