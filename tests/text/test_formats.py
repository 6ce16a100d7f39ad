"""Every format of tool calls: what is written is read, whole or in pieces, and nothing is lost."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.formats import find_tool_format, tool_format
from octavo.text.parser import Parser
from octavo.text.parts import Part, Text, ToolCall, join_parts
from tests.properties import examples
from tests.text.formats import FORMATS, TOOLS, Call, parser_name, written

# What a string in XML cannot say is its end, and line feeds next to its tags are not its own.
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "now"}', "[now()]", "\\", '"', "'", "a\nb", "5", "true", "[1", "\\u00e9"]
)
VALUES = {
    "city": STRINGS,
    "days": st.integers(-(10**20), 10**20),
    "exact": st.booleans(),
    "units": st.sampled_from(["metric", "imperial"]),
    "limits": st.dictionaries(STRINGS, st.none() | st.booleans() | st.integers() | STRINGS, max_size=2),
    "hours": st.lists(st.integers(0, 24) | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    "place": st.none() | STRINGS,
}
CALLS = st.fixed_dictionaries({"city": VALUES.pop("city")}, optional=VALUES).map(lambda given: ("get_weather", given))
ANY_CALLS = st.lists(CALLS | st.just(("now", {})), min_size=1, max_size=3)


def make(form: str) -> Parser:
    return tool_format(parser_name(form)).parser(TOOLS)


def run(parser: Parser, pieces: list[str]) -> list[Part]:
    return join_parts([part for piece in pieces for part in parser.push(piece)] + parser.flush())


def calls_in(parts: list[Part]) -> list[Call]:
    return [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, ToolCall)]


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def fragments(form: str) -> st.SearchStrategy[str]:
    """Bits of what the format writes, and of anything else."""
    text = written(form, [("get_weather", {"city": "a", "days": 1}), ("now", {})])
    bits = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(
        lambda edges: text[min(edges) : max(edges)]
    )
    markers = st.sampled_from([*tool_format(parser_name(form)).markers, "{", "}", "[", '"', "\n", " ", "name", "now("])
    return st.lists(bits | markers | st.text(max_size=5), max_size=8).map("".join)


@pytest.mark.parametrize("form", FORMATS)
@examples(40)
@given(calls=ANY_CALLS, cuts=st.lists(st.integers(0, 400), max_size=20))
def test_what_is_written_is_read(form: str, calls: list[Call], cuts: list[int]) -> None:
    text = written(form, calls)
    if form in ("qwen3_coder", "glm45"):
        ends = ("</parameter>", "\n</function>", "</arg_value>")
        strings = [value for _, given in calls for value in given.values() if isinstance(value, str)]
        if any(end in value for value in strings for end in ends):
            return
        # A string that may also be null says so by not being "null".
        calls = [
            (
                name,
                {key: None if key == "place" and value in ("null", "None") else value for key, value in given.items()},
            )
            for name, given in calls
        ]
    parts = run(make(form), cut(text, cuts))
    assert calls_in(parts) == [(name, dict(given)) for name, given in calls]
    assert all(isinstance(part, ToolCall) for part in parts)


@pytest.mark.parametrize("form", FORMATS)
@examples(30)
@given(data=st.data())
def test_cuts_make_no_difference(form: str, data: st.DataObject) -> None:
    text = data.draw(fragments(form))
    whole = run(make(form), [text])
    assert run(make(form), list(text)) == whole
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert run(make(form), cut(text, cuts)) == whole


@pytest.mark.parametrize("form", FORMATS)
def test_a_call_that_is_cut_is_a_call_once_its_name_is_written(form: str) -> None:
    text = written(form, [("get_weather", {"city": "Paris", "days": 2})])
    begun = 0
    for end in range(len(text)):
        parts = run(make(form), list(text[:end]))
        calls = [part for part in parts if isinstance(part, ToolCall)]
        assert len(calls) <= 1
        if calls:
            begun = begun or end
            assert calls[0].name == "get_weather"
            assert parts == calls
        else:
            assert not begun, "a call that had begun is lost"
    assert 0 < begun <= text.index("city")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("text", ["Hello, world.", "a < b, f(x) and {x} or [1, 2]: <tool", " \n ", "[a](b) {}"])
def test_what_is_no_call_is_text(form: str, text: str) -> None:
    assert run(make(form), list(text)) == [Text(text)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_call_of_an_unknown_function_is_a_call(form: str) -> None:
    assert calls_in(run(make(form), list(written(form, [("who", {"x": 1}), ("now", {})])))) == [
        ("who", {"x": 1}),
        ("now", {}),
    ]


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "openai"])
def test_text_around_calls_stays(form: str) -> None:
    call = written(form, [("now", {})])
    expected = [Text("Let me see."), ToolCall(0, "now", "{}"), Text("Done.")]
    for before, after in itertools.product(("\n", ""), ("\n", "")):
        if form.startswith("deepseek") or form not in ("json", "llama3_json", "pythonic") or not before:
            assert run(make(form), list(f"Let me see.{before}{call}{after}Done.")) == expected


@pytest.mark.parametrize("form", ["qwen3_coder", "glm45"])
def test_a_value_that_is_not_of_its_type_is_a_string(form: str) -> None:
    given = {"days": "two", "exact": "True", "hours": "[1, 2", "limits": '{"a": "x', "place": "None", "other": "5"}
    if form == "glm45":  # a string that is not closed goes on to the end of its line, past the end of the value
        del given["limits"]
    text = written(form, [("get_weather", given), ("now", {})])
    [(_, read), *rest] = calls_in(run(make(form), list(text)))
    assert read == {**given, "exact": True, "place": None, "other": 5}
    assert rest == [("now", {})]


def test_python_literals_become_json() -> None:
    arguments = """city='it\\'s \\u00e9', days=1_000, exact=True, limits={'a': (None, -1.5,),}, hours="[1]\""""
    text = f"[get_weather({arguments}), now()]"
    assert calls_in(run(make("pythonic"), list(text))) == [
        (
            "get_weather",
            {"city": "it's é", "days": 1000, "exact": True, "limits": {"a": [None, -1.5]}, "hours": [1]},
        ),
        ("now", {}),
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_work_is_linear(form: str) -> None:
    """Characters looked at, counted where the text is kept, for an answer in pieces of one character."""
    long = "x" * 4_000
    for text in (
        long,
        written(form, [("get_weather", {"city": long})]),
        written(form, [("get_weather", {"limits": {long: [1] * 200}})]),
        written(form, [("now", {})])[:-3] * 200,
        "\n" * 4_000,
        "<" * 4_000,
        "[" * 4_000,
        '{"name": ' * 400,
        written(form, [("get_weather", {"hours": []})]).replace("[]", "[" * 4_000),
    ):
        parser = make(form)
        copied = 0
        for character in text:
            parser.push(character)
            copied += len(parser._reader._text)  # type: ignore[attr-defined]
        parser.flush()
        assert copied < 60 * len(text)


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_found_by_what_it_writes(form: str) -> None:
    text = written(form, [("get_weather", {"city": "a"})])
    assert find_tool_format(text.replace("get_weather(", "func_name1("), "").name in (
        parser_name(form),
        "json",
    )
