"""Request bodies: OpenAI's fields and vLLM's additions. Null counts as absent, unknown fields are ignored.

What would constrain or change the output and is not supported is refused by name: a client that asks for valid JSON
must not get text that merely looks like it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import WithJsonSchema

MAX_PROMPTS = 1024
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_TOP_LOGPROBS = 20
INT64 = 2**63


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


def _refuse(value: Any) -> Any:
    if value not in (False, "", [], {}):
        raise ValueError("this field is not supported, and ignoring it would change what you get")
    return None


Unsupported = Annotated[Any, BeforeValidator(_refuse), Field(description="Not supported: refused.")]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopList = Annotated[list[StopString], BeforeValidator(_as_list, json_schema_input_type=StopString | list[StopString])]
TokenId = Annotated[int, Field(ge=0)]


class StreamOptions(Body):
    """What streams report beside text."""

    include_usage: bool = Field(False, description="One more chunk before the end, with the usage and no choices.")
    continuous_usage_stats: bool = Field(False, description="The usage so far in every chunk.")


class ResponseFormat(Body):
    """The only format there is so far; others are refused."""

    type: Literal["text"]


class GenerationBody(Body):
    """What chat and text completions share."""

    model: str = Field("", description="A name from /v1/models; the server's first model if absent.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, description="Choices per prompt.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[Annotated[int, Field(strict=False)], Annotated[float, Field(ge=-100, le=100)]] = Field({})
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: StopList = Field([], max_length=MAX_STOPS)
    stop_token_ids: list[TokenId] = Field([], max_length=1024)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = Field(False, description="Go on past the model's end-of-turn tokens.")
    min_tokens: int = Field(0, ge=0)
    skip_special_tokens: bool = True
    add_special_tokens: bool | None = Field(None, description="Whether the tokenizer adds its own, such as BOS.")
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    return_tokens_as_token_ids: bool = Field(False, description="Tokens in logprobs appear as `token_id:N`.")
    return_token_ids: bool = Field(False, description="The ids of prompt and output beside the text.")
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="Lower runs first.")
    cache_salt: str = Field("", max_length=128, description="Requests share cached prefixes only under equal salts.")

    response_format: ResponseFormat | None = None
    allowed_token_ids: Unsupported = None
    bad_words: Unsupported = None
    ebnf: Unsupported = None
    grammar: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    json_schema: Unsupported = None
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


class Message(Body):
    """One turn of a conversation. Further fields reach the model's chat template."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None

    @model_validator(mode="after")
    def _only_assistants_are_silent(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs content")
        return self


Messages = Annotated[list[Message], Field(min_length=1)]


class TemplateOptions(Body):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool | None = Field(
        None, description="End with the beginning of a reply; true unless the last message is continued."
    )
    continue_final_message: bool = Field(False, description="Go on with the last message instead of replying to it.")
    chat_template_kwargs: dict[str, Any] = Field({}, description="Variables for the model's chat template.")
    chat_template: Unsupported = None
    documents: Unsupported = None


class ChatCompletionRequest(GenerationBody, TemplateOptions):
    """POST /v1/chat/completions"""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="Old name of max_completion_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[dict[str, Any]] = Field([], description='Not supported yet unless tool_choice is "none".')
    tool_choice: Literal["none", "auto"] | None = None
    reasoning_effort: str | None = Field(None, description="A variable for the model's chat template.")
    modalities: list[Literal["text"]] = Field([])
    audio: Unsupported = None
    echo: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None


class CompletionRequest(GenerationBody):
    """POST /v1/completions"""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, description="16 if absent; 0 only together with echo.")
    echo: bool = Field(False, description="Begin with the prompt.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = Field(None, description="Refused unless equal to n.")
    suffix: Unsupported = None


class TokenizeRequest(TemplateOptions):
    """POST /tokenize: either a prompt or messages."""

    model: str = ""
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize"""

    model: str = ""
    tokens: list[TokenId]
