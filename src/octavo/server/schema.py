"""What request bodies are made of. Null counts as absent, and so does an empty list where one is optional; unknown
fields are ignored.

What would constrain or change the output and is not supported is refused by name: a client that asks for valid JSON
must not get text that merely looks like it.
"""

import re
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic.json_schema import WithJsonSchema

from octavo.deployments.request import Conversation, Sampling

MAX_PROMPTS = 1024
MAX_MESSAGES = 2**15
MAX_MESSAGE_FIELDS = 64
MAX_BIASES = 2**16
MAX_BIAS = 100
MAX_VARIABLES = 256
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
INT64 = 2**63


class WrongElement(ValueError):
    """What is wrong with one of very many elements, which are checked by hand: pydantic would report them all, and let
    nothing else run until it is through. `path` leads from the field to the element."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


def _refuse(value: Any) -> NoReturn:
    raise ValueError("this field is not supported, and ignoring it would change what you get")


def _refuse_unless_empty(value: Any) -> None:
    if value is not False and value not in ("", [], {}):  # 0 is a value: of a budget it is the strictest
        _refuse(value)


Unsupported = Annotated[Any, BeforeValidator(_refuse_unless_empty), Field(description="Not supported: refused.")]
UnsupportedSchema = Annotated[Any, BeforeValidator(_refuse), Field(description="Not supported: refused.")]
"""An empty JSON schema, too, is one: of any JSON, but of nothing else."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _empty_is_absent(value: Any) -> Any:
    return None if value == [] else value


def _prompts(value: Any) -> list[str | list[int]]:
    """One text, one list of ids, or a list of texts and lists of ids. By hand: a union would report every element."""
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in prompts):
        raise ValueError("a prompt is a string, a list of at least one token id, or a list of these")
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(f"there must be 1 to {MAX_PROMPTS} prompts")
    return prompts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value) and value != []


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
    BeforeValidator(_as_list, json_schema_input_type=StopString | list[StopString]),
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


class ResponseFormat(Body):
    """The only format there is so far; others are refused."""

    type: Literal["text"]


class SamplingBody(Body):
    """How tokens are drawn, under the names that all of the APIs here share; and what none of them has yet."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: Biases = Field({})
    seed: int | None = Field(None, ge=-INT64, lt=INT64)

    response_format: ResponseFormat | None = None
    allowed_token_ids: Unsupported = None
    bad_words: Unsupported = None
    ebnf: Unsupported = None
    grammar: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: UnsupportedSchema = None
    guided_regex: Unsupported = None
    json_schema: UnsupportedSchema = None
    kv_transfer_params: Unsupported = None
    logits_processors: Unsupported = None
    lora_path: Unsupported = None
    prompt_embeds: Unsupported = None
    regex: Unsupported = None
    repetition_detection: Unsupported = None
    stop_regex: Unsupported = None
    structural_tag: Unsupported = None
    structured_outputs: Unsupported = None
    thinking_token_budget: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    use_beam_search: Unsupported = None

    def sampling(self) -> Sampling:
        """The same in no API's words."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
        )


class TextPart(Body):
    """A piece of a message. Text is the only kind so far."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A call the model made earlier in the conversation."""

    name: str
    arguments: str = ""


class ToolCall(Body):
    """A call the model made earlier in the conversation."""

    model_config = ConfigDict(extra="allow")

    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """The call as a chat template reads it."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"function": function, **_present(self.model_extra)}


Role = Literal["system", "developer", "user", "assistant", "tool"]


class Message(Body):
    """One turn of a conversation. Further fields reach the model's chat template."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[
        Annotated[list[ToolCall], Field(fail_fast=True)] | None, BeforeValidator(_empty_is_absent)
    ] = None

    @model_validator(mode="after")
    def _only_assistants_are_silent(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as a chat template reads it. By hand: pydantic does not dump what is nested deeply, and anything
        may be in the further fields."""
        message: dict[str, Any] = {"role": self.role}
        if isinstance(self.content, list):
            message["content"] = [{"type": part.type, "text": part.text} for part in self.content]
        elif self.content is not None:
            message["content"] = self.content
        if self.tool_calls is not None:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message | _present(self.model_extra)


def _present(extra: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (extra or {}).items() if value is not None and value != []}


def _message(value: Any) -> dict[str, Any]:
    """A message as a chat template reads it. A usual one is that already: of tens of thousands the garbage collector
    would have more to do with the models than the server with the messages."""
    if isinstance(value, dict):
        if len(value) == 2 and value.get("role") in _ROLES and _is_text(value.get("content")):
            return value
        if len(value) > MAX_MESSAGE_FIELDS:
            raise ValueError(f"a message has at most {MAX_MESSAGE_FIELDS} fields, not {len(value)}")
    return Message.model_validate(value).for_template()


_ROLES = get_args(Role)


def _is_text(content: Any) -> bool:
    return isinstance(content, str) or (isinstance(content, list) and all(map(_is_text_part, content)))


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and len(part) == 2 and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


MessageDict = Annotated[dict[str, Any], PlainValidator(_message, json_schema_input_type=Message)]
Messages = Annotated[list[MessageDict], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]


def _not_too_many(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_VARIABLES:  # before each is looked at
        raise ValueError(f"there may be at most {MAX_VARIABLES} variables, not {len(value)}")
    return value


Variables = Annotated[dict[str, Any], BeforeValidator(_not_too_many), Field(max_length=MAX_VARIABLES)]


class TemplateOptions(Body):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool | None = Field(
        None, description="End with the beginning of a reply; true unless the last message is continued."
    )
    continue_final_message: bool = Field(False, description="Go on with the last message instead of replying to it.")
    chat_template_kwargs: Variables = Field({}, description="Variables for the model's chat template.")
    chat_template: Unsupported = None
    documents: Unsupported = None

    def conversation(
        self, messages: list[dict[str, Any]], add_special_tokens: bool | None, variables: dict[str, Any] | None = None
    ) -> Conversation:
        """The messages with these options; `variables` are for the template, beside the client's own."""
        return Conversation(
            messages=messages,
            variables=(variables or {}) | self.chat_template_kwargs,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            add_special_tokens=bool(add_special_tokens),
        )


class TokenizeRequest(TemplateOptions):
    """POST /tokenize: either a prompt or messages."""

    model: str = ""
    prompt: str | None = None
    messages: Annotated[Messages | None, BeforeValidator(_empty_is_absent)] = None
    tools: Unsupported = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize"""

    model: str = ""
    tokens: TokenIds
