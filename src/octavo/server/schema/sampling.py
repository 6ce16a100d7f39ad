"""How tokens are drawn, and what ends an answer."""

import re
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import WithJsonSchema

from octavo.deployments.request import Sampling
from octavo.grammar.constraint import Constraint
from octavo.server.schema.base import Body, Unsupported, UnsupportedSchema, WrongElement, as_list, is_empty, refuse
from octavo.server.schema.constraints import ResponseFormat, StructuredOutputs, constraint_of
from octavo.server.schema.hints import instead_of
from octavo.server.schema.tokens import TokenIds
from octavo.text.repetition import MAX_COUNT, MAX_PATTERN, repetition_of

MAX_BIASES = 2**16
MAX_BIAS = 100
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LENGTH = 128
INT64 = 2**63
MAX_TIMEOUT = 86_400.0


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise ValueError("this is no object from token ids to biases")
    if len(value) > MAX_BIASES:
        raise ValueError(f"there may be at most {MAX_BIASES} biases, not {len(value)}")
    for token, bias in value.items():
        if not _TOKEN_ID.fullmatch(str(token)):
            raise WrongElement("this is no token id, a whole number", token)
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise WrongElement(f"a bias is a number from -{MAX_BIAS} to {MAX_BIAS}", token)
    return {int(token): float(bias) for token, bias in value.items()}


def _one(value: Any) -> Any:
    if value != 1:
        refuse(value)
    return value


def _one_word(value: str) -> str:
    if not all("!" <= char <= "~" for char in value):
        raise ValueError("an id is printable ASCII without blanks")
    return value


_TOKEN_ID = re.compile(r"-?[0-9]{1,18}")

Biases = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
            "maxProperties": MAX_BIASES,
        }
    ),
]

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopList = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS, fail_fast=True),
    BeforeValidator(as_list, json_schema_input_type=StopString | list[StopString]),
]


BadWord = Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_LENGTH)]
BadWords = Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS, fail_fast=True)]


ELSEWHERE = (
    "ebnf",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "json_schema",
    "regex",
    "structural_tag",
)
"""Constraints under the names that other servers, or older ones, have for them."""


RequestId = Annotated[str, AfterValidator(_one_word)]


class RepetitionDetection(Body):
    """When an answer goes in circles: its last tokens are a pattern that came so often in a row."""

    max_pattern_size: int = Field(0, ge=0, le=MAX_PATTERN, description="Tokens of the largest pattern; 0 is off.")
    min_pattern_size: int = Field(0, ge=0, le=MAX_PATTERN, description="Of the smallest; 0 is 1.")
    min_count: int = Field(0, ge=0, le=MAX_COUNT, description="How often it came, at least 2; 0 is off.")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        _ = self.repetition
        return self

    @property
    def repetition(self) -> tuple[int, int, int] | None:
        """See `Stops.repetition`."""
        return repetition_of(self.max_pattern_size, self.min_pattern_size, self.min_count)


class SamplingBody(Body):
    """How tokens are drawn, under the names that all of the APIs here share; and what none of them has yet."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    typical_p: float | None = Field(
        None, gt=0, le=1, description="Keeps this much of the mass, of the tokens as surprising as is to be expected."
    )
    top_k: int | None = Field(None, ge=-1, description="0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: Biases = Field({})
    allowed_token_ids: TokenIds = Field([], max_length=MAX_BIASES, description="The only tokens that may be drawn.")
    bad_words: BadWords = Field([], description="Texts that are not generated.")
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    ignore_eos: bool = Field(False, description="Go on past the model's end-of-turn tokens.")
    min_tokens: int = Field(0, ge=0)
    timeout: float | None = Field(
        None, gt=0, le=MAX_TIMEOUT, description="Seconds from arrival; then the answer ends with what is there."
    )

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    ebnf: Unsupported = None
    grammar: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: UnsupportedSchema = None
    guided_regex: Unsupported = None
    json_schema: UnsupportedSchema = None
    kv_transfer_params: Unsupported = None
    length_penalty: Annotated[Any, BeforeValidator(_one), Field(description="Not supported: refused unless 1.")] = None
    logits_processors: Unsupported = None
    lora_path: Unsupported = None
    prompt_embeds: Unsupported = None
    regex: Unsupported = None
    repetition_detection: Unsupported = None
    stop_regex: Unsupported = None
    structural_tag: Unsupported = None
    thinking_token_budget: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    use_beam_search: Unsupported = None
    watermark: Unsupported = None

    @field_validator(*ELSEWHERE, mode="before")
    @classmethod
    def _are_elsewhere(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty JSON schema, too, is one: of any JSON, but of nothing else."""
        name = info.field_name or ""
        if "json" in name or not is_empty(value):
            refuse(value, " or ".join(instead_of(name, cls.schema_field)))
        return value

    def constraint(self) -> Constraint | None:
        """What the answer must look like. Raises ApiError: it cannot be kept to, or two things are asked for."""
        return constraint_of(self.response_format, self.structured_outputs)

    def sampling(self) -> Sampling:
        """The same in no API's words."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            typical_p=self.typical_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            allowed_token_ids=self.allowed_token_ids,
            bad_words=self.bad_words,
            seed=self.seed,
        )
