"""Prompts, and lists of token ids. Checked by hand: pydantic would report every element."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic.json_schema import WithJsonSchema

MAX_PROMPTS = 1024


def _prompts(value: Any) -> list[str | list[int]]:
    """One text, one list of ids, or a list of texts and lists of ids. By hand: a union would report every element."""
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in prompts):
        raise ValueError("a prompt is a string, a list of at least one token id, or a list of these")
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(f"there must be 1 to {MAX_PROMPTS} prompts")
    return prompts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) == {int}


Prompts = Annotated[
    Any,
    AfterValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    "minItems": 1,
                    "maxItems": MAX_PROMPTS,
                },
            ]
        }
    ),
]

TokenId = Annotated[int, Field(ge=0)]


def _token_ids(value: Any) -> list[int]:
    """By hand, as above: pydantic would check a million ids without letting anything else run."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError("this is no list of token ids, whole numbers from 0 on")
    return value


TokenIds = Annotated[
    Any,
    AfterValidator(_token_ids),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}}),
]
