"""How a conversation becomes a prompt."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from octavo.deployments.request import Conversation
from octavo.server.schema.base import Body, Unsupported, empty_is_absent
from octavo.server.schema.messages import Messages
from octavo.server.schema.tokens import TokenIds

MAX_VARIABLES = 256
MAX_DOCUMENTS = 1024
MAX_TEMPLATE = 1 << 18


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def effort_variables(effort: Effort | None) -> dict[str, Any]:
    """How much to think, as the families' chat templates call it."""
    if effort is None:
        return {}
    thinks = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks}


def _not_too_many(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_VARIABLES:  # before each is looked at
        raise ValueError(f"there may be at most {MAX_VARIABLES} variables, not {len(value)}")
    return value


Variables = Annotated[dict[str, Any], BeforeValidator(_not_too_many), Field(max_length=MAX_VARIABLES)]


Document = dict[str, Any]
"""Titles, texts and what else templates show."""


class TemplateOptions(Body):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool | None = Field(
        None, description="End with the beginning of a reply; true unless the last message is continued."
    )
    continue_final_message: bool = Field(False, description="Go on with the last message instead of replying to it.")
    chat_template_kwargs: Variables = Field({}, description="Variables for the model's chat template.")
    chat_template: str | None = Field(
        None, max_length=MAX_TEMPLATE, description="Jinja, in place of the model's; the operator must trust requests'."
    )
    documents: list[Document] | None = Field(
        None, max_length=MAX_DOCUMENTS, fail_fast=True, description="What to draw on, for chat templates that show it."
    )

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
            documents=self.documents or (),
            template=self.chat_template,
        )


class TokenizeRequest(TemplateOptions):
    """POST /tokenize: either a prompt or messages."""

    generates = False

    model: str = ""
    prompt: str | None = None
    messages: Annotated[Messages | None, BeforeValidator(empty_is_absent)] = None
    tools: Unsupported = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize"""

    generates = False

    model: str = ""
    tokens: TokenIds
