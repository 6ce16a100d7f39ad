"""Sampling parameters that a deployment recommends."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

log = logging.getLogger(__name__)

_WHOLE = ("top_k",)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling parameters for what a request leaves open."""

    temperature: float = 1.0
    top_p: float = 1.0
    typical_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], recommended: Mapping[str, float] | None = None
    ) -> "GenerationDefaults":
        """Read a checkpoint's generation_config.json.

        What no request could ask for is not taken: a warning says so, and OpenAI's default holds.

        Args:
            recommended: what the model's authors recommend. It holds where the checkpoint says nothing of sampling.
        """
        names = [field.name for field in fields(cls)]
        said = {name: config[name] for name in names if config.get(name) is not None}
        given = said or dict(recommended or {})
        usable: dict[str, Any] = {}
        for name, value in given.items():
            words, holds = _BOUNDS[name]
            if type(value) in (int, float) and holds(value) and (name not in _WHOLE or value == int(value)):
                usable[name] = int(value) if name in _WHOLE else float(value)
            else:
                shown = repr(value)[:80]
                log.warning("generation_config.json: %s is %s, but must be %s; it is ignored", name, shown, words)
        return cls(**usable)


# The bounds of the fields of requests; no comparison holds for NaN.
_BOUNDS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("from 0 to 2", lambda value: 0 <= value <= 2),
    "top_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "typical_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": ("a whole number of at least -1", lambda value: -1 <= value < 2**63),
    "min_p": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": ("from 0.01 to 100", lambda value: 0.01 <= value <= 100),
}
