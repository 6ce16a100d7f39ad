"""Sampling parameters that a deployment recommends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
