"""What all bodies have in common."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class WrongElement(ValueError):
    """What is wrong with one of very many elements, which are checked by hand: pydantic would report them all, and let
    nothing else run until it is through. `path` leads from the field to the element."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


class Body(BaseModel):
    """What all bodies have in common.

    Attributes:
        generates: whether a model answers, so that a constraint must not be ignored.
        schema_field: where clients of this API say what an answer must look like.
        moved: fields that other APIs have, and those that this one has instead. They are refused, for to ignore one
            would change what the client gets, unless it says nothing, or one of the others the same.
        has_more: whether clients send members that it does not have and that say nothing to a model here.
    """

    generates: ClassVar[bool] = True
    schema_field: ClassVar[str] = "response_format"
    moved: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    has_more: ClassVar[bool] = False

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for old, names in cls.moved.items():
            value = data.get(old)
            if value is None or is_empty(value):
                continue
            if as_list(value) not in [as_list(_member(data, name)) for name in names]:
                raise WrongElement(f"this API has {' or '.join(map(repr, names))} instead", old)
        return {name: value for name, value in data.items() if value is not None}


def _member(data: Any, path: str) -> Any:
    for name in path.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def refuse(value: Any, instead: str = "") -> NoReturn:
    """A field that is known, and not supported. `instead`: what is."""
    hint = f"; use {instead} instead" if instead else ""
    raise ValueError(f"this field is not supported, and ignoring it would change what you get{hint}")


def is_empty(value: Any) -> bool:
    """Whether a field says nothing. 0 is a value: of a budget it is the strictest."""
    return value is False or value in ("", [], {})


def _refuse_unless_empty(value: Any) -> None:
    if not is_empty(value):
        refuse(value)


Ignored = Annotated[Any, Field(description="Accepted; changes nothing.")]
"""What other servers' bookkeeping needs."""

NOT_SUPPORTED = "Not supported: refused."

Unsupported = Annotated[Any, BeforeValidator(_refuse_unless_empty), Field(description=NOT_SUPPORTED)]
UnsupportedSchema = Annotated[Any, BeforeValidator(refuse), Field(description=NOT_SUPPORTED)]
"""An empty JSON schema, too, is one: of any JSON, but of nothing else."""


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def empty_is_absent(value: Any) -> Any:
    """Lists that may be left out."""
    return None if value == [] else value
