"""What an answer must look like."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from octavo.grammar import constraint
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError
from octavo.grammar.structural_tag import structural_tag
from octavo.grammar.structured import StructuredOutputsParams
from octavo.server.errors import ApiError, invalid
from octavo.server.schema.base import Body, UnsupportedSchema

NOTHING_ELSE = ConfigDict(extra="forbid")
"""A member that is not known here would be a constraint that is ignored."""


class JsonSchema(Body):
    """A schema by its name."""

    model_config = NOTHING_ELSE

    name: str = Field("", max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="JSON schema; any object if absent.")
    strict: bool = Field(False, description="The schema is kept to either way.")


class ResponseFormat(Body):
    """OpenAI's way to ask for it."""

    model_config = NOTHING_ELSE

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: Any = Field(None, description="xgrammar's structural tag.")
    structures: Any = Field(None, description="The older way to write one: schemas between a begin and an end.")
    triggers: Any = Field(None, description="What the begins of `structures` begin with.")

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type \"json_schema\" needs 'json_schema'")
        if self.type == "structural_tag" and not self.model_fields_set & {"format", "structures"}:
            raise ValueError("type \"structural_tag\" needs 'format', or 'structures' and 'triggers'")
        for name in sorted(self.model_fields_set - {"type"}):
            kind = "json_schema" if name == "json_schema" else "structural_tag"
            if kind != self.type:
                raise ValueError(f'type "{self.type}" has no \'{name}\'; the type for it is "{kind}"')
        return self

    def constraint(self) -> Constraint | None:
        """The same as a grammar. Raises GrammarError."""
        match self.type:
            case "json_object":
                return constraint.any_object("response_format")
            case "json_schema":
                assert self.json_schema is not None
                schema = {"type": "object"} if self.json_schema.schema_ is None else self.json_schema.schema_
                return constraint.json_schema(schema, "response_format.json_schema.schema")
            case "structural_tag":
                return structural_tag({name: getattr(self, name) for name in self.model_fields_set}, "response_format")
        return None


class StructuredOutputs(Body):
    """vLLM's way: one of several kinds."""

    model_config = NOTHING_ELSE

    json_: str | dict[str, Any] | None = Field(None, alias="json", description="A JSON schema, or one as a string.")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1, max_length=constraint.MAX_CHOICES, fail_fast=True)
    grammar: str | None = Field(None, description="In Lark's or GBNF's syntax.")
    structural_tag: str | dict[str, Any] | None = Field(None, description="xgrammar's, or one as a string.")
    disable_any_whitespace: bool = Field(False, description="JSON without blanks between its tokens.")
    whitespace_pattern: str | None = Field(None, description="What may stand between JSON's tokens.")
    disable_additional_properties: UnsupportedSchema = None

    def constraint(self) -> Constraint:
        """The same as a grammar. Raises GrammarError, InvalidRequest."""
        return StructuredOutputsParams(
            json=self.json_,
            json_object=self.json_object,
            regex=self.regex,
            choice=self.choice,
            grammar=self.grammar,
            structural_tag=self.structural_tag,
            disable_any_whitespace=self.disable_any_whitespace,
            whitespace_pattern=self.whitespace_pattern,
        ).constraint()


def constraint_of(response_format: ResponseFormat | None, structured: StructuredOutputs | None) -> Constraint | None:
    """What two fields together ask for. Raises ApiError, InvalidRequest: it cannot be kept to, or they exclude each
    other."""
    try:
        wanted = [each for each in (response_format, structured) if each is not None]
        found = [each for each in (each.constraint() for each in wanted) if each is not None]
    except GrammarError as error:
        raise refused(error) from error
    if len(found) > 1:
        raise invalid("'response_format' and 'structured_outputs' exclude each other.", "structured_outputs")
    return found[0] if found else None


def refused(error: GrammarError) -> ApiError:
    """The error for a constraint that cannot be kept to."""
    return invalid(f"{error.refusal}.", error.path)
