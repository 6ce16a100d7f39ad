"""What a model may call: the client's functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.grammar.schema import closed


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function of the client's.

    Attributes:
        name: what calls say.
        description: for the model; "" if the client gave none.
        parameters: a JSON schema of an object, the arguments.
        strict: whether the client asked that arguments keep to the schema wherever the model decides to call.
        path: where the client wrote the parameters, for errors.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False
    path: str = "tools"

    @property
    def schema(self) -> dict[str, Any]:
        """What arguments have to be valid for: the parameters, which are always an object."""
        return {"type": "object", "properties": {}, **closed(dict(self.parameters))}

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: OpenAI's shape, with all that templates look up without asking."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}
