"""How a model's answers are written, and what reads them."""

import pytest

from octavo.errors import OctavoError
from octavo.text.answer import AnswerFormat
from octavo.text.parser import Parser
from octavo.text.parts import Part, Reasoning, Text, ToolCall, join_parts
from octavo.text.tools import Tool


def parts(parser: Parser, text: str) -> list[Part]:
    return join_parts([part for character in text for part in parser.push(character)] + parser.flush())


def test_names_that_are_wrong_name_those_that_are_right() -> None:
    with pytest.raises(OctavoError, match=r"no tool-call parser 'x'.*hermes"):
        AnswerFormat.of(None, "llama", "x")
    with pytest.raises(OctavoError, match=r"no reasoning parser 'x'.*deepseek_r1"):
        AnswerFormat.of(None, "llama", None, "x")


def test_reasoning_comes_before_calls_and_holds_none() -> None:
    form = AnswerFormat.of("{{ tools }}<tool_call></think>", "qwen3")
    assert (form.tools.name, form.reasoning and form.reasoning.name) == ("hermes", "think")
    assert form.markers == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    thought = 'I could <tool_call>{"name": "f"}</tool_call>'
    answer = f'<think>\n{thought}\n</think>\n\nSo:\n<tool_call>\n{{"name": "f", "arguments": {{}}}}\n</tool_call>'
    expected = [Reasoning(thought), Text("So:"), ToolCall(0, "f", "{}")]
    assert parts(form.parser([Tool(name="f")], thinking=False), answer) == expected
    assert form.is_thinking("<|im_start|>assistant\n<think>\n")
    assert parts(form.parser([Tool(name="f")], thinking=True), answer.removeprefix("<think>\n")) == expected


@pytest.mark.parametrize(
    ("answer", "thinking", "expected"),
    [
        ("<think>\n\n</think>\n\nHi", False, [Text("Hi")]),
        ("</think>\n\nHi", True, [Text("Hi")]),
        ("</think>Hi", False, [Text("Hi")]),
        ("hm\n</think>", True, [Reasoning("hm")]),
        ("<think>hm\n", False, [Reasoning("hm\n")]),
        ("<think>hm", True, [Reasoning("hm")]),
        (" <thi", False, [Text(" <thi")]),
        ("Hi </think>", False, [Text("Hi </think>")]),
    ],
)
def test_where_reasoning_begins_and_ends(answer: str, thinking: bool, expected: list[Part]) -> None:
    form = AnswerFormat.of(None, "qwen3", None, "qwen3")
    assert parts(form.parser(None, thinking=thinking), answer) == expected
