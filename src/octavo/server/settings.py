"""What a server is told when it starts: how to behave, and which models to serve."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.engine.client import EngineClient
from octavo.text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the HTTP side behaves.

    Attributes:
        api_keys: with any, every route but /health and /ready needs one of them.
        cors_origins: origins whose pages may call the server; none by default, `*` is all.
        max_body_bytes: longer request bodies are refused with 413.
        ping_seconds: a comment is sent on streams that were silent for so long, so that proxies keep them; 0 is never.
        drain_seconds: how long requests may go on after the signal to stop.
        seed: of the seeds that requests without one get; None is different ones at every start.
    """

    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    ping_seconds: float = 15.0
    drain_seconds: float = 30.0
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling parameters for what a request leaves open."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "GenerationDefaults":
        """Read a checkpoint's generation_config.json; what it gives as no number keeps OpenAI's default."""
        known = {name: config.get(name) for name in cls.__dataclass_fields__}
        numbers = {
            name: type(getattr(cls(), name))(value)
            for name, value in known.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        return cls(**numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model and the names it answers to.

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
