"""Text: tokenizers, chat templates, incremental detokenising, stop strings. Knows no HTTP and no engine."""

from octavo.text.detokenize import Detokenizer
from octavo.text.encoding import TooManyTokens
from octavo.text.stop import StopStrings
from octavo.text.template import ChatTemplate, TemplateError
from octavo.text.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "StopStrings",
    "TemplateError",
    "Tokenizer",
    "TooManyTokens",
    "load_tokenizer",
]
