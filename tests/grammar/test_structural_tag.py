"""Structural tags: what is drawn keeps to them, in the eyes of a reader that knows nothing of grammars."""

import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer

from octavo.grammar.compiler import Job
from octavo.grammar.constraint import WHITESPACE
from octavo.grammar.errors import GrammarError
from octavo.grammar.matcher import compile_grammar
from octavo.grammar.process import judge
from octavo.grammar.structural_tag import structural_tag
from tests.grammar.test_constraint import BYTES, accepts
from tests.properties import examples
from tests.text.test_grammars import Bytes, matcher, walk

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON = {"type": "json_schema", "json_schema": OBJECT}
ANY = {"type": "any_text"}
CALL = '<f>{"a": 1}</f>'


def tag(begin: str, content: Any, end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def text(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def whole(form: Any) -> dict[str, Any]:
    return {"type": "structural_tag", "format": form}


def triggered(*tags: Any, triggers: Any = ("<f",), **fields: Any) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": list(triggers), "tags": list(tags), **fields}


def separated(*tags: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tags_with_separator", "separator": ", ", "tags": list(tags), **fields}


def sequence(*elements: Any) -> dict[str, Any]:
    return {"type": "sequence", "elements": list(elements)}


CALLS = tag("<f>", JSON, "</f>")
LEGACY = {
    "type": "structural_tag",
    "structures": [{"begin": f"<function={name}>", "schema": OBJECT, "end": "</function>"} for name in "fg"],
    "triggers": ["<function="],
}


# The oracle: where a piece of text that keeps to a format may end, found by trying.


def ends(form: dict[str, Any], said: str, start: int) -> set[int]:
    match form["type"]:
        case "const_string":
            return {start + len(form["value"])} if said.startswith(form["value"], start) else set()
        case "json_schema":
            return set(_json_ends(form["json_schema"], said, start))
        case "regex":
            matches = (end for end in range(start, len(said) + 1) if re.fullmatch(form["pattern"], said[start:end]))
            return set(matches)
        case "any_text":
            return _text_ends(said, start, form.get("excludes", []))
        case "sequence":
            places = {start}
            for element in form["elements"]:
                places = {end for place in places for end in ends(element, said, place)}
            return places
        case "or":
            return {end for element in form["elements"] for end in ends(element, said, start)}
        case "optional":
            return {start} | ends(form["content"], said, start)
        case "tag":
            closing = [form["end"]] if isinstance(form["end"], str) else form["end"]
            middles = (
                ends(form["content"], said, start + len(form["begin"])) if said.startswith(form["begin"], start) else ()
            )
            return {middle + len(end) for middle in middles for end in closing if said.startswith(end, middle)}
        case "tags_with_separator":
            one = {"type": "or", "elements": form["tags"]}
            more = sequence(text(form["separator"]), one)
            found = _repeated(more, said, ends(one, said, start), form.get("stop_after_first", False))
            return found if form.get("at_least_one") else found | {start}
        case "triggered_tags":
            return _triggered_ends(form, said, start)
    raise AssertionError(form["type"])


def _json_ends(schema: Any, said: str, start: int) -> Iterator[int]:
    for end in range(start + 1, len(said) + 1):
        try:
            jsonschema.validate(json.loads(said[start:end]), schema, format_checker=jsonschema.FormatChecker())
        except (ValueError, jsonschema.ValidationError):
            continue
        yield end


def _text_ends(said: str, start: int, excluded: list[str]) -> set[int]:
    return {end for end in range(start, len(said) + 1) if not any(each in said[start:end] for each in excluded)}


def _repeated(more: dict[str, Any], said: str, found: set[int], once: bool) -> set[int]:
    waiting = set() if once else set(found)
    while waiting:
        new = {end for place in waiting for end in ends(more, said, place)} - found
        found, waiting = found | new, new
    return found


def _triggered_ends(form: dict[str, Any], said: str, start: int) -> set[int]:
    between = {"type": "any_text", "excludes": [*form["triggers"], *form.get("excludes", [])]}
    one = {"type": "or", "elements": form["tags"]}
    first = ends(one, said, start)
    if not form.get("at_least_one"):
        first |= ends(sequence(between, one), said, start)
    tags = _repeated(sequence(between, one), said, first, form.get("stop_after_first", False))
    if not form.get("stop_after_first"):
        tags |= {end for place in tags for end in ends(between, said, place)}
    return tags if form.get("at_least_one") else tags | ends(between, said, start)


# Formats in which free text is followed by something that tells where it ends.

MARKS = ["<f>", "<g>", "</f>", "X:", "é\n"]
OPENINGS = ["<f a>", "<f b>", "<f>"]
CLOSINGS = ["</f>", "!", "]", "</g>"]
marks, openings = st.sampled_from(MARKS), st.sampled_from(OPENINGS)
scalars = st.sampled_from([{"type": "boolean"}, {"enum": ["<f>", 1]}, {"type": "string", "maxLength": 2}, OBJECT])
simple = st.one_of(
    st.builds(text, st.text("ab<é", max_size=3)),
    st.builds(lambda schema: {"type": "json_schema", "json_schema": schema}, scalars),
    st.just({"type": "regex", "pattern": "[a-c]{1,3}|x"}),
)
free = st.builds(
    lambda excludes: {"type": "any_text", "excludes": excludes}, st.lists(st.sampled_from(["a", "no"]), max_size=1)
)


def _tags(inner: st.SearchStrategy[Any], begin: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.builds(tag, begin, inner | free, st.sampled_from(["</f>", "!", ["]", "</g>"]]))


def _compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    flags = {"at_least_one": st.booleans(), "stop_after_first": st.booleans()}
    some = st.lists(inner | free, min_size=1, max_size=3)
    return st.one_of(
        st.builds(lambda elements: {"type": "sequence", "elements": elements}, some),
        st.builds(lambda elements: {"type": "or", "elements": elements}, some),
        st.builds(lambda content: {"type": "optional", "content": content}, inner),
        _tags(inner, marks),
        st.builds(
            lambda tags, excludes, **fields: triggered(*tags, excludes=excludes, **fields),
            st.lists(_tags(inner, openings), min_size=1, max_size=2),
            st.lists(st.just("no"), max_size=1),
            **flags,
        ),
        st.builds(
            lambda tags, **fields: separated(*tags, **fields),
            st.lists(_tags(inner, marks), min_size=1, max_size=2),
            **flags,
        ),
    )


formats = st.recursive(simple, _compound, max_leaves=5)


@examples(120)
@given(formats, st.integers(0, 2**32), st.booleans())
def test_whatever_is_drawn_keeps_to_the_tags(form: dict[str, Any], seed: int, special: bool) -> None:
    tokens = Bytes(["<f>", "</g>"] if special else [])
    try:
        wanted = structural_tag(whole(form), "it")
        assert wanted.spelled is not None
        source = wanted.spelled(tokens.ids).source
    except GrammarError:  # free text without an end that can be told
        return
    said = walk(tokens, source, [*MARKS, *OPENINGS, *CLOSINGS, "no"], random.Random(seed))
    if said is not None:  # else it has not come to its end
        assert len(said) in ends(form, said, 0), said


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (text("a\x7f"), ["a\x7f"], ["", "a", "ab"]),
        (JSON, ['{"a": 1}'], ['{"a": "1"}', "", '{"a": 1} ']),
        ({**JSON, "max_whitespace_cnt": 0}, ['{"a":1}'], ['{"a": 1}']),
        ({"type": "regex", "pattern": "^[ab]+$"}, ["ab"], ["", "abc"]),
        ({"type": "grammar", "grammar": 'root ::= "a" | "b" root'}, ["bba"], ["ab"]),
        ({"type": "grammar", "grammar": 'start: "a"+'}, ["aa"], [""]),
        (ANY, ["", "<anything>\n"], []),
        ({"type": "any_text", "excludes": ["ab", "x"], "max_chars": 3}, ["ba", "aéa"], ["cab", "x", "aaaa"]),
        (sequence(text("a"), JSON), ['a{"a":1}'], ["a", '{"a":1}']),
        (sequence(ANY, text("!"), JSON), ['hm!{"a":1}', '!{"a":1}'], ["hm!", '{"a":1}', 'h!m!{"a":1}']),
        (sequence({"type": "regex", "pattern": "[a-z]+"}, text("abc")), ["xabc"], ["x", "xab"]),
        (sequence({"type": "regex", "pattern": "(?i)ab"}, text("c/\n"), JSON), ['ABc/\n{"a":1}'], ['ABC/\n{"a":1}']),
        (sequence({"type": "regex", "pattern": "(?x)a b # c"}, text("!")), ["ab!"], ["ab"]),
        (sequence({"type": "or", "elements": [ANY, text("b")]}, tag("<", text("c"), ">")), ["b<c>", "a<c>"], ["a<d"]),
        ({"type": "or", "elements": [text("yes"), text("no"), text("")]}, ["yes", "no", ""], ["y"]),
        ({"type": "optional", "content": text("a")}, ["", "a"], ["aa"]),
        ({"type": "plus", "content": text("ab")}, ["ab", "abab"], ["", "aba"]),
        ({"type": "star", "content": tag("<", ANY, ">")}, ["", "<x><>"], ["<x", "x"]),
        ({"type": "repeat", "min": 1, "max": 2, "content": text("a")}, ["a", "aa"], ["", "aaa"]),
        (
            {"type": "sequence", "elements": [{"type": "repeat", "min": 0, "max": 0, "content": text("a")}, text("b")]},
            ["b"],
            ["ab", "a"],
        ),
        ({"type": "repeat", "min": 2, "max": -1, "content": text("a")}, ["aa", "aaaa"], ["a"]),
        (tag("<t>", ANY, "</t>"), ["<t>a<b</t>"], ["<t>", "<t>a</t>b</t>", "a</t>"]),
        (tag("<t>", ANY, ["</t>", "]"]), ["<t>a]", "<t>a</t>"], ["<t>a]b"]),
        (tag("<t>", ANY, ""), ["<t>", "<t>abc"], ["abc"]),
        (tag("", ANY, "."), ["a."], ["a", "a.b"]),
        (tag("<t>", {"type": "any_text", "excludes": ["</t>"]}, "</t>"), ["<t>a</t>"], ["<t>a</t></t>"]),
        (triggered(CALLS), ["", "so <g", CALL, f"a{CALL}b{CALL}c"], ["<f", "<f>", f"{CALL}<f!", "<fx"]),
        (triggered(CALLS, at_least_one=True), [CALL, f"{CALL}a"], ["", "a", f"a{CALL}"]),
        (triggered(CALLS, stop_after_first=True), ["", "a", f"a{CALL}"], [f"{CALL}a"]),
        (triggered(CALLS, at_least_one=True, stop_after_first=True), [CALL], ["", f"a{CALL}", f"{CALL}a"]),
        (triggered(CALLS, excludes=["no"]), [CALL, "n", f"n{CALL}o"], ["no", f"{CALL}no"]),
        (tag("<r>", triggered(CALLS), "</r>"), [f"<r>a{CALL}b</r>", "<r></r>"], ["<r>", "<r></r>b", f"<r>{CALL}"]),
        (sequence(triggered(CALLS), text("END")), [f"a{CALL}END", "END"], ["a", CALL, "ENDEND"]),
        (separated(CALLS), ["", CALL, f"{CALL}, {CALL}"], [f"{CALL}, ", f"{CALL}{CALL}", "a"]),
        (separated(CALLS, at_least_one=True, stop_after_first=True), [CALL], ["", f"{CALL}, {CALL}"]),
        ({"type": "dispatch", "rules": [["<f>", JSON], ["?", text("!")]]}, ['a<f>{"a":1}b?!'], ["a?", "<f>b"]),
        ({"type": "dispatch", "rules": [["?", text("!")]], "loop": False}, ["a", "a?!"], ["a?!b", "?!?!"]),
    ],
)
def test_every_format(form: dict[str, Any], good: list[str], bad: list[str]) -> None:
    wanted = structural_tag(whole(form), "it")
    assert [said for said in good if not accepts(wanted, said)] == []
    assert [said for said in bad if accepts(wanted, said)] == []


@pytest.mark.parametrize("mark", ["\x00", "\x85", "\u2028", "\\", '"', "/", "\t", "\r\n", "#", "😀", "-]"])
def test_whatever_tags_are_made_of(mark: str) -> None:
    form = triggered(tag(f"{mark}<f>", ANY, mark), triggers=[f"{mark}<"], excludes=[f"{mark}z"])
    wanted = structural_tag(whole(form), "it")
    assert accepts(wanted, f"a{mark}b{mark}<f>x{mark}y")
    assert not accepts(wanted, f"a{mark}<f{mark}")
    assert not accepts(wanted, f"a{mark}z")


def test_blanks_between_jsons_tokens() -> None:
    for whitespace, fits in ((WHITESPACE, {"", " "}), (None, {""}), ("_?", {"", "_"})):
        wanted = structural_tag(whole(tag("<", JSON, ">")), "it", whitespace=whitespace)
        assert {blank for blank in ("", " ", "_") if accepts(wanted, f'<{{"a":{blank}1}}>')} == fits


def test_the_older_way() -> None:
    wanted = structural_tag(LEGACY, "it")
    good = ["", "text", '<function=f>{"a": 1}</function> and <function=g>{"a": 2}</function>!']
    bad = ["<function=", "<function=h>", '<function=f>{"b": 1}</function>', '<function=f>{"a": 1}']
    assert [said for said in good if not accepts(wanted, said)] == []
    assert [said for said in bad if accepts(wanted, said)] == []


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (triggered(CALLS, triggers=["<f>"]), [f"a{CALL}b{CALL}", "a"], ["<f>"]),
        (triggered(tag("x<f>", JSON, "</f>"), triggers=["x<f>"]), [f"x{CALL}", "axyx"], ["x<f>"]),
        (sequence(tag("<f>", ANY, "</f>"), JSON), ['<f>a</f>{"a":1}'], ["<f>a</f>"]),
        (sequence(ANY, tag("x<f>y", text("z"), "")), ["aaxax<f>yz"], ["ax", "x<f>z"]),
        (sequence({"type": "regex", "pattern": "[a-z]*"}, text("<f>!")), ["ab<f>!", "<f>!"], ["ab!", "<f>"]),
        (sequence({"type": "regex", "pattern": "[a-z]*"}, text("!<f>")), ["ab!<f>", "!<f>"], ["ab!", "<f>"]),
    ],
)
def test_special_tokens_are_no_text(form: dict[str, Any], good: list[str], bad: list[str]) -> None:
    """Where a tag is a token of its own, it is this that is written, not its letters."""
    tokens = Bytes(["<f>", "</f>"])
    spelled = structural_tag(whole(form), "it").spelled
    assert spelled is not None
    source = spelled(tokens.ids).source

    def accepted(ids: list[int]) -> bool:
        state = matcher(tokens, source)
        return bool(state.try_consume_tokens(ids) == len(ids) and state.is_accepting())

    assert [said for said in good if not accepted(tokens.encode(said))] == []
    assert [said for said in bad if accepted(tokens.encode(said))] == []


def refused(value: Any, special: tuple[str, ...] = ()) -> tuple[str | None, str]:
    try:
        wanted = structural_tag(value, "it")
        if special:
            assert wanted.spelled is not None
            wanted = wanted.spelled(Bytes(special).ids)
    except GrammarError as error:
        return error.path, str(error)
    job = Job(wanted.source, [(path, json.dumps(each).encode()) for path, each in wanted.schemas], list(wanted.parts))
    found = judge(BYTES, job)
    assert found.error is not None
    return found.path, found.error


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([], "it"),
        ("x", "it"),
        ({}, "it"),
        ({"type": "json_schema", "format": ANY}, "it.type"),
        ({"format": ANY, "triggers": ["a"]}, "it"),
        ({"structures": LEGACY["structures"]}, "it"),
        ({"structures": [], "triggers": ["a"]}, "it.structures"),
        ({"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}, "it.structures[0]"),
        ({"structures": [{"begin": "a", "schema": 5, "end": "b"}], "triggers": ["a"]}, "it.structures[0].schema"),
        ({"structures": [{"begin": "b", "schema": {}, "end": ""}], "triggers": ["a"]}, "it.structures[0].begin"),
        ({"structures": [{"begin": "a", "schema": {"not": {}}, "end": ""}], "triggers": "a"}, "it.triggers"),
        ({"structures": [{"begin": "", "schema": {}, "end": ""}], "triggers": ["a"]}, "it.structures[0].begin"),
        (
            {"structures": [{"begin": "a", "schema": {"not": {}}, "end": ""}], "triggers": ["a"]},
            "it.structures[0].schema",
        ),
        (whole(5), "it.format"),
        (whole({}), "it.format"),
        (whole({"type": ["tag"]}), "it.format.type"),
        (whole({"type": "const_string"}), "it.format"),
        (whole({"type": "const_string", "value": 5}), "it.format.value"),
        (whole({"type": "const_string", "value": "a", "vaule": "b"}), "it.format"),
        (whole({"type": "json_schema", "json_schema": []}), "it.format.json_schema"),
        (whole(sequence(text("a"), {"type": "json_schema", "json_schema": {"items": {"not": {}}}})),
         "it.format.elements[1].json_schema.items"),
        (whole({"type": "json_schema", "json_schema": False}), "it.format.json_schema"),
        (whole({"type": "regex", "pattern": "("}), "it.format.pattern"),
        (whole(sequence(text("a"), {"type": "regex", "pattern": "(?=a)"})), "it.format.elements[1].pattern"),
        (whole({"type": "regex", "pattern": ""}), "it.format.pattern"),
        (whole(sequence({"type": "regex", "pattern": "a)(b"}, text("c"))), "it.format.elements[0].pattern"),
        (whole(tag("<", {"type": "grammar", "grammar": "start: x"}, ">")), "it.format.content.grammar"),
        (whole({"type": "grammar", "grammar": "root ::= ("}), "it.format.grammar"),
        (whole({"type": "grammar", "grammar": 'start: %json {"x-guidance": {}}'}), "it.format.grammar"),
        (whole(sequence()), "it.format.elements"),
        (whole({"type": "or", "elements": [{"type": "or", "elements": []}]}), "it.format.elements[0].elements"),
        (whole(tag("<", ANY, [])), "it.format.end"),
        (whole(tag("<", ANY, ["a", ""])), "it.format.end[1]"),
        (whole(tag("<", ANY, None)), "it.format.end"),
        (whole(triggered(CALLS, triggers=[])), "it.format.triggers"),
        (whole(triggered(CALLS, triggers=[""])), "it.format.triggers[0]"),
        (whole(triggered()), "it.format.tags"),
        (whole(triggered(CALLS, text("a"))), "it.format.tags[1].type"),
        (whole(triggered(CALLS, triggers=["<g"])), "it.format.tags[0].begin"),
        (whole(triggered(CALLS, triggers=["<f", "<f>"])), "it.format.tags[0].begin"),
        (whole(triggered(CALLS, triggers=["<f", "<g"])), "it.format.triggers[1]"),
        (whole(triggered(CALLS, tag("x<f", JSON, ""), triggers=["<f", "x<f"])), "it.format"),
        (whole(triggered(CALLS, at_least_one=1)), "it.format.at_least_one"),
        (whole({"type": "repeat", "min": 2, "max": 1, "content": JSON}), "it.format.max"),
        (whole({"type": "repeat", "min": 2, "max": 10**6, "content": JSON}), "it.format.max"),
        (whole({"type": "any_text", "max_chars": -1}), "it.format.max_chars"),
        (whole({"type": "any_text", "max_chars": 10_001}), "it.format.max_chars"),
        (whole({"type": "any_text", "max_chars": 1_001, "excludes": ["a"]}), "it.format.max_chars"),
        (whole({"type": "dispatch", "rules": [["a"]]}), "it.format.rules[0]"),
        # Free text of which nothing tells where it ends.
        (whole(sequence(ANY, JSON)), "it.format.elements[0]"),
        (whole(sequence(ANY, {"type": "optional", "content": JSON})), "it.format.elements[0]"),
        (whole(sequence(triggered(CALLS), ANY)), "it.format.elements[0]"),
        (whole({"type": "star", "content": ANY}), "it.format.content"),
        (whole(triggered(tag("<f>", ANY, ""))), "it.format.tags[0].content"),
        (whole(tag("<r>", triggered(tag("<", JSON, ">"), triggers=["<"]), "</r>")), "it.format.content"),
        (whole(sequence(ANY, text("x" * 300))), "it.format.elements[0]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_where_it_stands(value: Any, path: str) -> None:
    found, message = refused(value)
    assert found == path
    assert "\n" not in message


@pytest.mark.parametrize(
    ("form", "path", "said"),
    [
        *(({"type": kind}, ".type", f"Invalid value '{kind}': the types that are supported are any_text, const_string")
          for kind in ("qwen_xml_parameter", "token", "exclude_token", "any_tokens", "token_triggered_tags",
                       "token_dispatch", "xml")),
        ({**JSON, "style": "qwen_xml"}, ".style", "'qwen_xml'"),
        ({**JSON, "any_order": True}, ".any_order", "any order"),
        ({"type": "any_text", "max_tokens": 5}, ".max_tokens", "null"),
        (tag("<", ANY, {"type": "token", "token": ">"}), ".end", "object"),
        (tag({"type": "token", "token": ">"}, ANY, ""), ".begin", "object"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(form: dict[str, Any], path: str, said: str) -> None:
    found, message = refused(whole(form))
    assert (found, said in message) == (f"it.format{path}", True), message


def test_what_xgrammars_own_classes_write_is_read() -> None:
    """They write out what is not asked for."""
    written = {**JSON, "style": "json", "any_order": False, "max_whitespace_cnt": None}
    free: dict[str, Any] = {"type": "any_text", "excludes": [], "max_tokens": None, "max_chars": None}
    assert (
        structural_tag(whole(tag("<", written, ">")), "it").source
        == structural_tag(whole(tag("<", JSON, ">")), "it").source
    )
    assert structural_tag(whole(free), "it").source == structural_tag(whole(ANY), "it").source


def test_a_trigger_that_cuts_a_token_is_refused() -> None:
    path, message = refused(whole(triggered(CALLS)), ("<f>",))
    assert path == "it.format.tags[0].begin"
    assert "'<f' ends within '<f>'" in message


def _nested(levels: int, kind: str) -> dict[str, Any]:
    form = text("a")
    for _ in range(levels):
        form = {"type": kind, "content": form}
    return form


LARGE: dict[str, Any] = {
    "tags": triggered(*[tag(f"<f{n}>", JSON, "") for n in range(5000)]),
    "triggers": triggered(CALLS, triggers=[f"<f{n}" for n in range(5000)]),
    "different triggers": triggered(
        *[tag(f"<{n:03}>", ANY, "x") for n in range(900)], triggers=[f"<{n:03}" for n in range(900)]
    ),
    "prefixes": triggered(tag("a" * 3000, ANY, "x"), triggers=["a" * n for n in range(1, 3000)]),
    "levels": _nested(3000, "plus"),
    "options": sequence(*[{"type": "optional", "content": text(str(n))} for n in range(1500)]),
    "ends": sequence(
        {"type": "or", "elements": [{**ANY, "max_chars": n} for n in range(1500)]},
        {"type": "or", "elements": [text(f"x{n:04}") for n in range(900)]},
    ),
    "excluded": triggered(*[tag(f"<f{n}>", ANY, "x") for n in range(9)], excludes=["ab" * 300_000]),
    "excluded often": triggered(
        *[tag(f"<{n:03}>", text("a"), "x") for n in range(250)],
        triggers=[f"<{n:03}" for n in range(250)],
        excludes=[f"excluded {n}" * 20 for n in range(1000)],
    ),
    "schema": {"type": "json_schema", "json_schema": {"anyOf": [{"const": n} for n in range(20_000)]}},
}  # fmt: skip


@pytest.mark.parametrize("form", LARGE)
def test_what_is_too_large_is_refused_at_once(form: str) -> None:
    value = whole(LARGE[form])
    begun = time.perf_counter()
    with pytest.raises(GrammarError) as error:
        structural_tag(value, "it")
    assert time.perf_counter() - begun < 2
    assert (error.value.path or "").startswith("it")


def test_many_tools_are_not_too_many() -> None:
    tags = [tag(f"<f{n}>", {**JSON, "json_schema": {**OBJECT, "title": str(n)}}, "</f>") for n in range(256)]
    wanted = structural_tag(whole(triggered(*tags)), "it")
    assert compile_grammar(LLTokenizer("byte"), wanted.source)
    assert accepts(wanted, 'so <f255>{"a": 1}</f>')
