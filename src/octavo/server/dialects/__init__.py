"""The APIs that generate text: each is one file, and one line here."""

from typing import Any

from octavo.server.dialects.anthropic_messages import Messages
from octavo.server.dialects.dialect import Dialect
from octavo.server.dialects.generate import Generate
from octavo.server.dialects.openai_chat import ChatCompletions
from octavo.server.dialects.openai_completions import Completions

DIALECTS: tuple[Dialect[Any], ...] = (
    ChatCompletions(),
    Completions(),
    Messages(),
    Generate(),
)
