"""Harmony, what gpt-oss writes: messages in channels, of which some are calls and some are reasoning."""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.grammar.lark import TEXT, Lark, either
from octavo.text.formats.format import ToolFormat
from octavo.text.formats.grammar import CallGrammar
from octavo.text.formats.reader import Reader, ReadingParser
from octavo.text.parser import Parser
from octavo.text.scanner import Give, Reading, drop, marks
from octavo.text.tools import Tool

_ENDS = ("<|end|>", "<|call|>", "<|return|>")
# A message that is not ended ends where the next begins.
_AFTER = ("<|start|>", "<|channel|>", *_ENDS)
_LINE = re.compile(r"[^<\n]+")
_NAME = re.compile(r"[\w.-]+")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([\w.-]+)(?=[\s<])")


class Harmony(ToolFormat):
    """<|channel|>analysis<|message|> begins reasoning, <|channel|>commentary to=functions.name<|message|> a call, other
    channels text. Each message ends with <|end|>, <|call|> or <|return|>; the next begins with <|start|>assistant."""

    names = ("openai", "openai_gptoss", "harmony")
    markers = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", *_ENDS)
    families = ("gpt_oss", "gpt-oss")
    end_of_reasoning = "<|end|><|start|>assistant<|channel|>final<|message|>"
    _start, _assistant, _to = marks("<|start|>"), marks("assistant"), marks("to=")
    _in_header = marks("<|channel|>", "<|constrain|>", "<|message|>")
    _ends = marks(*_ENDS)
    _after = marks(*_AFTER)

    def recognises(self, template: str) -> bool:
        return "<|channel|>" in template

    def parser(self, tools: Sequence[Tool] | None) -> Parser:
        """Channels are told apart also where nothing may be called."""
        return ReadingParser(self.read, tools or ())

    def read(self, reader: Reader) -> Reading[None]:
        said: set[Give] = set()
        while True:
            reader.hold()
            complete = yield from self._read_header(reader)
            header = reader.let_go()
            give: Give = reader.text
            if complete:
                give = self._begin(reader, header)
                if give != reader.arguments:
                    give("\n" if give in said else "")  # the next message of the same kind
                    said.add(give)
            elif (yield from reader.peek()):
                reader.text(header)
            else:
                self._begin_cut(reader, header)
            reader.thinking = give == reader.reasoning
            if give == reader.arguments:
                yield from reader.value(give)  # whose strings may say what a marker says
            if not (yield from reader.up_to(self._after, give, in_call=give == reader.arguments)):
                return
            yield from reader.literal(self._ends)

    def _read_header(self, reader: Reader) -> Reading[bool]:
        """What comes before a message's text: who says it and to whom, its channel and its type. Whether it is all
        there; what is none is read no further than it could be one."""
        yield from reader.literal(self._start)
        yield from reader.blanks()
        yield from reader.literal(self._assistant)
        yield from reader.blanks()
        if (yield from reader.literal(self._to)):
            yield from reader.run(_NAME, drop)
            yield from reader.blanks()
        mark = yield from reader.literal(self._in_header, in_call=True)
        while mark in ("<|channel|>", "<|constrain|>"):
            yield from reader.run(_LINE, drop)
            mark = yield from reader.literal(self._in_header, in_call=True)
        return bool(mark)

    def _begin(self, reader: Reader, header: str) -> Give:
        """Takes the text of the message with this header."""
        if recipient := _RECIPIENT.search(header):
            name = recipient[1].removeprefix("functions.")
            if name != recipient[1] or name in reader.tools:
                reader.call(name)
                return reader.arguments
            return reader.reasoning  # for a tool that is none of the client's
        channel = _CHANNEL.search(header)
        return reader.reasoning if channel and channel[1] == "analysis" else reader.text

    def _begin_cut(self, reader: Reader, header: str) -> None:
        """The answer ends in a header: that of a call is one if its name is complete."""
        if _RECIPIENT.search(header):
            self._begin(reader, header)
        elif "<|channel|>" not in header or "to=" in header:
            reader.text(header)

    def call_grammar(self, lark: Lark, tool: Tool) -> CallGrammar:
        opening = f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json<|message|>"
        # Models stop at the marker after a call, so that it need not be written.
        return CallGrammar(opening, f"{lark.json(tool.schema)} ({lark.literal('<|call|>')})?")

    def grammar(self, lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool, without: str) -> str | None:
        """Reasoning, and what models say before they call; then one call, or unless `required` the answer."""
        calls = [self.call_grammar(lark, tool) for tool in tools]
        last = [f"{lark.literal(call.opening)} {call.rest}" for call in calls]
        return self._last(lark, last if required else [*last, self._final(lark, TEXT)], "analysis", "commentary")

    def before_answer(self, lark: Lark, answer: str) -> str:
        return self._last(lark, [self._final(lark, answer)], "analysis")  # a comment would be text beside the answer

    def _last(self, lark: Lark, messages: Sequence[str], *before: str) -> str:
        """One of these messages, and any number in these channels before it."""
        channels = [lark.literal(f"<|channel|>{channel}<|message|>") for channel in before]
        # Where markers are tokens, text has none of them anyway; to make sure takes half a millisecond a token.
        excluded = () if lark.begins_special("<|end|>") else _AFTER
        text = lark.free_up_to("<|end|><|start|>assistant", excluded=excluded)
        return f"({either(channels)} {text})* {either(messages)}"

    def _final(self, lark: Lark, answer: str) -> str:
        return f"{lark.literal('<|channel|>final<|message|>')} {answer} ({lark.literal('<|return|>')})?"
