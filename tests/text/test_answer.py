"""How a model's answers are written, and what reads them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import OctavoError
from octavo.text.answer import AnswerFormat
from octavo.text.parser import Parser
from octavo.text.parts import Part, Reasoning, Text, ToolCall, join_parts
from octavo.text.reasoning import REASONING_FORMATS
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


MARKERS = {form.name: [*form.markers, *form.interrupts] for form in REASONING_FORMATS}
BITS = ["\n", "\n\n", " ", "<think", "</", "Here", "a", "<tool_call>", '{"name": "f", "arguments": {}}', "</tool_call>"]


@pytest.mark.parametrize("name", MARKERS)
@given(data=st.data(), thinking=st.booleans())
def test_cuts_make_no_difference(name: str, data: st.DataObject, thinking: bool) -> None:
    form = AnswerFormat.of(None, "qwen3", "kimi_k2" if name == "kimi_k2" else "hermes", name)
    text = "".join(data.draw(st.lists(st.sampled_from([*MARKERS[name], *BITS]), max_size=9)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))

    def read(pieces: list[str]) -> list[Part]:
        parser = form.parser([Tool(name="f")], thinking=thinking)
        return join_parts([part for piece in pieces for part in parser.push(piece)] + parser.flush())

    whole = read([text])
    assert read(list(text)) == whole
    assert read([text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]) == whole
    said = "".join(part.text for part in whole if isinstance(part, Text | Reasoning))
    if not any(isinstance(part, ToolCall) for part in whole):
        assert without_markers(said, name) == without_markers(text, name)


def without_markers(text: str, name: str) -> str:
    for marker in MARKERS[name]:
        text = text.replace(marker, "")
    return "".join(text.split())


@pytest.mark.parametrize(
    ("name", "prompt", "thinking"),
    [
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("qwen3", "<|im_start|>assistant\n", False),
        ("deepseek_r1", "<｜Assistant｜>", True),
        ("deepseek_r1", "<｜Assistant｜></think>", False),
        ("mistral", "[/INST]", False),
    ],
)
def test_a_prompt_says_whether_its_answer_begins_with_reasoning(name: str, prompt: str, thinking: bool) -> None:
    assert AnswerFormat.of(None, "x", None, name).is_thinking(prompt) == thinking


def test_families_write_their_markers() -> None:
    mistral = AnswerFormat.of(None, "mistral", None, "mistral")
    assert mistral.end_of_reasoning == "[/THINK]"
    parser = mistral.parser([Tool(name="f")], thinking=False)
    assert parts(parser, "[THINK]why[/THINK]ok[TOOL_CALLS]f[ARGS]{}") == [
        Reasoning("why"),
        Text("ok"),
        ToolCall(0, "f", "{}"),
    ]
    granite = AnswerFormat.of("Here is my thought process: Here is my response: <|tool_call|>", "granite")
    assert parts(granite.parser(None, thinking=False), "Here's my thought process: x\nHere is my response: y") == [
        Reasoning(" x"),
        Text(" y"),
    ]
    kimi = AnswerFormat.of("<think></think><|tool_calls_section_begin|><|tool_call_begin|>", "kimi")
    call = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert parts(kimi.parser([Tool(name="f")], thinking=False), f"<think>hm{call}") == [
        Reasoning("hm"),
        ToolCall(0, "f", "{}"),
    ]


def test_harmony_is_one_parser_for_reasoning_and_calls() -> None:
    for form in (
        AnswerFormat.of("<|channel|>analysis", "gpt_oss"),
        AnswerFormat.of(None, "x", "openai"),
        AnswerFormat.of(None, "x", None, "openai_gptoss"),
    ):
        assert form.reasoning is None
        parser = form.parser(None, thinking=form.is_thinking("<|start|>assistant"))
        assert parser.push("<|channel|>analysis<|message|>hm") == [Reasoning("hm")]
        assert parser.thinking
        assert parser.push(form.end_of_reasoning + "Hi") == [Text("Hi")]
        assert not parser.thinking


def test_a_parser_says_whether_it_reads_reasoning() -> None:
    parser = AnswerFormat.of("</think>", "qwen3").parser(None, thinking=False)
    seen = [(parser.push(piece), parser.thinking)[1] for piece in ("\n", "<think", ">", "a", "</think", ">", "b")]
    assert seen == [False, False, True, True, True, False, False]
