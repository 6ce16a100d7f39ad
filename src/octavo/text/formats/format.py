"""What a format of tool calls is: how models of one family write that they call a function."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from octavo.grammar.lark import Lark
from octavo.text.formats import grammar
from octavo.text.formats.grammar import CallGrammar, Frame
from octavo.text.formats.reader import Reader, ReadingParser
from octavo.text.parser import Parser, PlainParser
from octavo.text.scanner import Reading
from octavo.text.tools import Tool


class ToolFormat(ABC):
    """A family's way of writing calls.

    Attributes:
        names: as `--tool-call-parser` takes them, which are vLLM's; the first is the format's own.
        markers: all that frames calls. Where one is a special token in a model's vocabulary, a parser must see its
            text all the same.
        families: what names of model families that write it contain.
        end_of_reasoning: what ends reasoning and begins the answer, in a format that also marks reasoning, so that it
            takes no `ReasoningFormat` before it; else "".
    """

    names: ClassVar[tuple[str, ...]]
    markers: ClassVar[tuple[str, ...]] = ()
    families: ClassVar[tuple[str, ...]] = ()
    end_of_reasoning: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The format's own name."""
        return self.names[0]

    @abstractmethod
    def recognises(self, template: str) -> bool:
        """Whether a chat template, given as its source, has models write this format."""

    def call_id(self, index: int, name: str) -> str:
        """An id for a call of an answer, its `index`-th, which comes back in the history and reaches the template."""
        return f"call_{uuid.uuid4().hex[:24]}"

    @abstractmethod
    def read(self, reader: Reader) -> Reading[None]:
        """Read a whole answer."""

    @abstractmethod
    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        """One call of this tool, with arguments of its schema.

        Raises OctavoError for a schema that the format cannot be held to.
        """

    def frame(self, lark: Lark) -> Frame:
        """What is written around calls."""
        return Frame()

    def grammar(self, lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool, without: str) -> str | None:
        """A Lark expression of answers that may call `tools`, or must if `required`: once, or several times if
        `parallel`. None where anything may be written.

        `without`: a regular expression of what an answer with text does not begin with and go on as; "" for none.
        """
        frame, calls = self.frame(lark), [self.call_grammar(lark, tool) for tool in tools]
        if required:
            return grammar.required(lark, frame, calls, parallel=parallel)
        return grammar.auto(lark, frame, calls, parallel=parallel, without=without)

    def before_answer(self, lark: Lark, answer: str) -> str | None:
        """A Lark expression of an answer, which is one itself, behind reasoning; None for a format that marks none."""
        return None

    def parser(self, tools: Sequence[Tool] | None) -> Parser:
        """What reads one answer of a model that may call `tools`; with None all of it is text."""
        return PlainParser() if tools is None else ReadingParser(self.read, tools)
