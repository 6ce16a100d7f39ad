"""From a request's messages or prompts to token ids."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from octavo.server.errors import invalid
from octavo.server.generation import Prompt
from octavo.server.schema import Message, TemplateOptions
from octavo.text import TemplateError, Tokenizer

INLINE_BYTES = 2048
"""Bodies up to this size are tokenised at once, in about two milliseconds; a thread takes larger ones off the loop."""

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})

P = ParamSpec("P")
R = TypeVar("R")


async def off_loop(size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function, in a thread if its input is large: other requests' streams must go on meanwhile."""
    if size <= INLINE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str | list[int]], add_special_tokens: bool | None
) -> list[Prompt]:
    """Text prompts become ids, with BOS and the like unless the client says no; ids stay as they are."""
    special = True if add_special_tokens is None else add_special_tokens
    return [
        Prompt(tokenizer.encode(prompt, add_special_tokens=special), prompt)
        if isinstance(prompt, str)
        else Prompt(prompt)
        for prompt in prompts
    ]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    options: TemplateOptions,
    *,
    add_special_tokens: bool | None = None,
    **variables: Any,
) -> Prompt:
    """Render a conversation with the model's chat template and tokenise it. Templates write BOS themselves.

    Args:
        variables: for the template, beside the request's own.

    Raises:
        ApiError: 400: the model has no template, or the template does not take this conversation.
    """
    if tokenizer.chat_template is None:
        raise invalid("This model has no chat template; use /v1/completions.", "messages")
    clash = RESERVED.intersection(options.chat_template_kwargs)
    if clash:
        name = min(clash)
        raise invalid(f"'{name}' is a field of its own, not of chat_template_kwargs.", f"chat_template_kwargs.{name}")
    generation_prompt = options.add_generation_prompt
    if generation_prompt is None:
        generation_prompt = not options.continue_final_message
    try:
        text = tokenizer.chat_template.render(
            [message.model_dump(exclude_none=True) for message in messages],
            add_generation_prompt=generation_prompt,
            continue_final_message=options.continue_final_message,
            **(variables | options.chat_template_kwargs),
        )
    except TemplateError as error:
        raise invalid(str(error), "messages") from error
    return Prompt(tokenizer.encode(text, add_special_tokens=bool(add_special_tokens)))
