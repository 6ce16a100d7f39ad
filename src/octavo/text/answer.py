"""How a model's answers are written: its format of tool calls and its reasoning, found from what comes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.grammar.lark import Lark
from octavo.text.formats import ToolFormat, find_tool_format, tool_format
from octavo.text.parser import Parser
from octavo.text.reasoning import ReasoningFormat, find_reasoning_format, reasoning_format
from octavo.text.tools import Tool

HARMONY = ("openai_gptoss", "harmony")
"""Names of the parser of reasoning that is the parser of calls as well."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Which markup a model's answers have.

    Attributes:
        tools: how it writes calls.
        reasoning: how it marks what it thinks; None if it does not think, or if `tools` marks that too.
    """

    tools: ToolFormat
    reasoning: ReasoningFormat | None = None

    @classmethod
    def of(
        cls, template: str | None, family: str, tool_parser: str | None = None, reasoning_parser: str | None = None
    ) -> AnswerFormat:
        """What a model writes, found from its chat template's source (None if it has none), or else from its family's
        name (`model_type`). The names of parsers, where given, count instead.

        Raises OctavoError for a name that no parser has.
        """
        if reasoning_parser in HARMONY:
            tool_parser = tool_parser or reasoning_parser
        tools = tool_format(tool_parser) if tool_parser else find_tool_format(template, family)
        if tools.end_of_reasoning:
            return cls(tools)
        return cls(tools, reasoning_format(reasoning_parser) if reasoning_parser else find_reasoning_format(template))

    @property
    def markers(self) -> frozenset[str]:
        """All that frames calls and reasoning. A detokenizer must leave those that are special tokens in the text
        that a parser reads, also where clients do not see special tokens."""
        return frozenset((*self.tools.markers, *(self.reasoning.markers if self.reasoning else ())))

    @property
    def end_of_reasoning(self) -> str:
        """What a model writes where its reasoning ends and its answer begins; "" if it does not think."""
        return self.reasoning.close if self.reasoning else self.tools.end_of_reasoning

    def is_thinking(self, prompt: str) -> bool:
        """Whether an answer to this prompt begins within reasoning."""
        return self.reasoning is not None and self.reasoning.is_open(prompt)

    def parser(self, tools: Sequence[Tool] | None, *, thinking: bool) -> Parser:
        """What reads one choice.

        `tools`: those that the model may call; None where it may call none, and then what looks like a call is text.
        `thinking`: as `is_thinking` says of the prompt.
        """
        answer = self.tools.parser(tools)
        return self.reasoning.parser(answer, opened=thinking) if self.reasoning else answer

    def before_answer(self, special: Mapping[str, int], *, thinking: bool) -> str | None:
        """The Lark source, for llguidance, of reasoning and then an answer that follows another grammar, `@answer`.
        None for a model that does not reason. Arguments as for `grammar`."""
        lark = Lark(special)
        if (answer := self.tools.before_answer(lark, "@answer")) is not None:
            return lark.source(answer)
        if self.reasoning is None:
            return None
        thought = f"{self.reasoning.grammar(lark, opened=thinking)} /\\n{{0,2}}/ @answer"
        return lark.source(thought if thinking else f"(@answer | {thought})")

    def grammar(
        self, tools: Sequence[Tool], special: Mapping[str, int], *, required: bool, parallel: bool, thinking: bool
    ) -> str | None:
        """The Lark source, for llguidance, of answers that may call `tools`, or must if `required`: once, or several
        times if `parallel`. Reasoning before that is free. None where anything may be written.

        A tool that was chosen by its name is required and the only one. `special`: texts and ids of the tokens that
        are special in the vocabulary. `thinking`: as `is_thinking` says of the prompt.

        Raises OctavoError for a tool with a schema to which the format cannot be held.
        """
        lark = Lark(special)
        reasoning = self.reasoning
        without = reasoning.pattern(lark) if reasoning and not thinking else ""
        start = self.tools.grammar(lark, tools, required=required, parallel=parallel, without=without)
        if start is None or reasoning is None:
            return start and lark.source(start)
        later = self.tools.grammar(lark, tools, required=required, parallel=parallel, without="") if without else start
        thought = f"{reasoning.grammar(lark, opened=thinking)} /\\n{{0,2}}/ {later}"
        return lark.source(thought if thinking else f"({start} | {thought})")
