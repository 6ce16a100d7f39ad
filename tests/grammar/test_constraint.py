"""What clients may ask an answer to look like: what passes is kept to, all else is refused where it stands."""

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer

from octavo.grammar import constraint
from octavo.grammar.compiler import Job
from octavo.grammar.constraint import Constraint
from octavo.grammar.errors import GrammarError, cause
from octavo.grammar.matcher import Matcher, compile_grammar
from octavo.grammar.process import judge
from octavo.grammar.schema import KEYWORDS, misspelt
from octavo.grammar.vocabulary import Vocabulary
from tests.properties import examples

BYTES = LLTokenizer("byte")


def accepts(wanted: Constraint, text: str) -> bool:
    matcher = compile_grammar(BYTES, wanted.source).raw
    tokens = BYTES.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def verdict(wanted: Constraint) -> tuple[str | None, str | None]:
    found = judge(BYTES, Job(wanted.source, [(path, json.dumps(each).encode()) for path, each in wanted.schemas]))
    return found.error, found.path


def walk(matcher: Matcher, vocabulary: Vocabulary, rng: np.random.Generator, most: int = 400) -> str | None:
    """What a model that knows nothing says: any token that is allowed, the end as soon as that is."""
    words, data = -(-len(vocabulary.tokens) // 32), b""
    for _ in range(most):
        mask = np.zeros((1, words), np.uint32)
        matcher.raw.unsafe_compute_mask_ptr(mask.ctypes.data, words * 4)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
        if vocabulary.ends[0] in allowed:
            return data.decode()
        token = int(rng.choice(allowed))
        data += vocabulary.tokens[token]
        if matcher.advance([token], 0).complete:
            return data.decode()
    return None


names = st.text('abcé"\\', min_size=1, max_size=3)
scalars = st.sampled_from(
    [
        {"type": "string", "maxLength": 4},
        {"type": "integer", "minimum": -5, "maximum": 300},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["x", 1, None, {"a": [1]}]},
        {"const": "c\n"},
        {"type": "string", "pattern": "^[a-c]{2}$"},
        {"type": "string", "format": "date"},
    ]
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(names, inner, max_size=3)
    return properties.flatmap(
        lambda each: st.builds(
            lambda required: {
                "type": "object",
                "properties": each,
                "required": required,
                "additionalProperties": False,
            },
            st.lists(st.sampled_from(sorted(each)), unique=True) if each else st.just([]),
        )
    )


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
        st.just({"$ref": "#/$defs/shared"}),
    ),
    max_leaves=6,
)


@examples(60)
@given(schemas, scalars, st.integers(0, 2**32), st.booleans())
def test_whatever_is_drawn_is_valid_for_the_schema(
    vocabulary: Vocabulary, schema: dict[str, Any], shared: dict[str, Any], seed: int, blanks: bool
) -> None:
    schema = schema | {"$defs": {"shared": shared}}
    wanted = constraint.json_schema(schema, "it", whitespace=constraint.WHITESPACE if blanks else None)
    text = walk(compile_grammar(_opened(vocabulary), wanted.source), vocabulary, np.random.default_rng(seed))
    if text is not None:  # else it has not come to its end
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        assert blanks or " " not in text or '"' in text


_OPENED: dict[int, LLTokenizer] = {}


def _opened(vocabulary: Vocabulary) -> LLTokenizer:
    return _OPENED.setdefault(id(vocabulary), vocabulary.open())


@given(st.lists(st.text(max_size=6), min_size=1, max_size=4), st.text(max_size=6))
def test_a_choice_is_one_of_the_texts(options: list[str], other: str) -> None:
    wanted = constraint.choice(options, "it")
    assert all(accepts(wanted, option) for option in options)
    assert accepts(wanted, other) == (other in options)


@pytest.mark.parametrize("pattern", [r"\d{2}", "^[ab]+$", "a|bc", "(?:x/y)*", r"\w\s", "", "é?", "[^a]", r"a\.b", '"'])
@pytest.mark.parametrize("text", ["12", "٣٤", "ab", "bc", "x/y", "x/yx/y", "é", "b ", "a.b", "acb", '"', ""])
def test_a_regular_expression_matches_all_of_the_text(pattern: str, text: str) -> None:
    assert accepts(constraint.regex(pattern, "it"), text) == (re.fullmatch(pattern, text, re.ASCII) is not None)


@pytest.mark.parametrize("source", ['root ::= "a" | "b" root', 'start: "a" | "b" start'])
def test_grammars_in_both_notations(source: str) -> None:
    wanted = constraint.grammar(source, "it")
    assert accepts(wanted, "bba")
    assert not accepts(wanted, "ab")


def test_any_object() -> None:
    wanted = constraint.any_object("it")
    assert accepts(wanted, '{"a": [1, {"b": null}]}')
    assert not accepts(wanted, "[1]")
    assert not accepts(wanted, '{"a":' + " " * 100 + "1}"), "a model might write blanks for ever"


UNSUPPORTED = [
    {"not": {"type": "string"}},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"a": {}}},
    {"dependencies": {"a": ["b"]}},
    {"contains": {"type": "string"}},
    {"minContains": 2},
    {"uniqueItems": True},
    {"propertyNames": {"pattern": "^a"}},
    {"unevaluatedProperties": False},
    {"unevaluatedItems": False},
    {"divisibleBy": 3},
    {"extends": {"type": "string"}},
    {"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}},
    {"type": "string", "minLenght": 3},
    {"type": "string", "maxlength": 3},
    {"type": "object", "propertes": {"a": {"type": "string"}}},
    {"type": "object", "additonalProperties": False},
    {"Enum": ["a"]},
    {"disallow": "string"},
    {"type": "string", "format": "no-such-format"},
    {"$dynamicRef": "#a"},
    {"$ref": "https://example.com/schema"},
    {"$ref": "#/$defs/missing"},
    {"oneOf": [{"type": "string"}, {"minLength": 3}]},
    {"type": "no-such-type"},
    {"type": "object", "required": "a"},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": "["},
    {"x-guidance": {"lenient": True}, "not": {}},
]


@pytest.mark.parametrize("wrong", UNSUPPORTED, ids=lambda schema: "+".join(schema))
@pytest.mark.parametrize("place", ["", ".properties.a", ".properties.a.items", ".anyOf[1]", ".$defs.d"])
def test_what_cannot_be_kept_is_refused_where_it_stands(wrong: dict[str, Any], place: str) -> None:
    schema = {
        "": lambda: wrong,
        ".properties.a": lambda: {"type": "object", "properties": {"b": {}, "a": wrong}},
        ".properties.a.items": lambda: {"type": "object", "properties": {"a": {"type": "array", "items": wrong}}},
        ".anyOf[1]": lambda: {"anyOf": [{"type": "null"}, wrong]},
        ".$defs.d": lambda: {"type": "array", "items": {"$ref": "#/$defs/d"}, "$defs": {"d": wrong}},
    }[place]()
    try:
        error, path = verdict(constraint.json_schema(schema, "it"))
    except GrammarError as refused:
        error, path = str(refused), refused.path
    assert error is not None
    assert path == "it" + place
    assert "\n" not in error
    assert "option" not in error  # which no client has


def test_annotations_of_somebodys_own_are_taken() -> None:
    """OpenAPI's and those of others: they look like no keyword."""
    own = {
        "example": "a",
        "nullable": True,
        "discriminator": {"propertyName": "a"},
        "x-order": 1,
        "note": "a",
        "menu": 1,
    }
    schema = {
        "type": "string",
        "readOnly": True,
        "deprecated": False,
        "$id": "x",
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "t",
        **own,
    }
    assert verdict(constraint.json_schema(schema, "it"))[0] is None
    for keyword in KEYWORDS:
        assert misspelt(keyword) is None


@pytest.mark.parametrize(
    "schema", [{"type": "integer", "minimum": 5, "maximum": 3}, {"allOf": [{"const": 1}, {"const": 2}]}]
)
def test_what_nothing_is_valid_for_is_refused(schema: dict[str, Any]) -> None:
    assert verdict(constraint.json_schema(schema, "it"))[0] is not None


def test_every_keyword_of_the_specification_is_kept_or_refused() -> None:
    """Whatever an instance violates in jsonschema's eyes, a grammar must not allow."""
    bad: list[tuple[dict[str, Any], Any]] = [
        ({"type": "array", "items": [{"type": "string"}], "additionalItems": False}, [1]),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, [1]),
        ({"type": "array", "minItems": 1}, []),
        ({"type": "array", "maxItems": 1}, [1, 2]),
        ({"type": "object", "minProperties": 2}, {"a": 1}),
        ({"type": "object", "maxProperties": 1}, {"a": 1, "b": 2}),
        ({"type": "object", "patternProperties": {"^a": {"type": "string"}}}, {"a": 1}),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {"a": 1}),
        ({"required": ["b"]}, {"a": 1}),
        ({"properties": {"a": {"type": "string"}}}, {"a": 1}),
        ({"minLength": 2}, "a"),
        ({"maxLength": 1}, "ab"),
        ({"minimum": 3}, 1),
        ({"maximum": 1}, 3),
        ({"exclusiveMinimum": 3}, 3),
        ({"exclusiveMaximum": 3}, 3),
        ({"multipleOf": 5}, 13),
        ({"pattern": "^a"}, "b"),
        ({"type": "string", "format": "ipv4"}, "no"),
        ({"const": [1]}, [2]),
        ({"enum": [1, 2]}, 3),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, 1),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, 1),
        ({"$ref": "#/$defs/a", "minLength": 3, "$defs": {"a": {"type": "string"}}}, "a"),
        ({"$defs": {"a": {"$anchor": "x", "type": "string"}}, "$ref": "#x"}, 3),
    ]
    for schema, instance in bad:
        wanted = constraint.json_schema(schema, "it")
        assert not accepts(wanted, json.dumps(instance)), schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "a list"),
        ("x", "a string"),
        (None, "null"),
        (False, "false"),
        ({"anyOf": [{"const": n} for n in range(20_000)]}, "more than 10000"),
        ({"const": "\ud800"}, "surrogate"),
    ],
    ids=["list", "string", "null", "false", "branches", "surrogate"],
)
def test_what_is_no_schema_or_too_large(schema: Any, said: str) -> None:
    with pytest.raises(GrammarError, match=said):
        constraint.json_schema(schema, "it")


def test_nested_too_deeply() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="100 levels"):
        constraint.json_schema(schema, "it")
    fits: dict[str, Any] = {"type": "string"}
    for _ in range(90):
        fits = {"items": fits}
    assert verdict(constraint.json_schema(fits, "it")) == (None, None)


@pytest.mark.parametrize(
    "wanted", [constraint.regex("[", "r"), constraint.regex("(?=a)", "r"), constraint.regex("(a)\\1", "r")]
)
def test_a_wrong_expression_is_said_in_one_line(wanted: Constraint) -> None:
    error, _ = verdict(wanted)
    assert error is not None
    assert "\n" not in error


@pytest.mark.parametrize(
    "source",
    [
        "",
        'start: %json {"x-guidance": {"lenient": true}, "not": {}}',
        "start: x",
        "start: <no-such-token>",
        "start: start",
        "\ud800",
    ],
)
def test_a_wrong_grammar_is_refused(source: str) -> None:
    try:
        error, _ = verdict(constraint.grammar(source, "it"))
    except GrammarError as refused:
        error = str(refused)
    assert error


def test_the_cause_of_an_error() -> None:
    assert cause("at 1(8): failed to compile JSON schema: Unimplemented keys\n<non-verbose/>") == "Unimplemented keys"
    assert cause("regex parse error:\n  (?=\n  ^\nerror: look-around\n  | x") == "look-around"
    assert cause("") == "it is not valid"


def test_an_object_that_names_its_members_has_no_others() -> None:
    named = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}}}
    wanted = constraint.json_schema(named, "it")
    assert accepts(wanted, '{"a": {"b": 1}}')
    assert not accepts(wanted, '{"c": 1}')
    assert not accepts(wanted, '{"a": {"c": 1}}')
    assert accepts(constraint.json_schema(named | {"additionalProperties": True}, "it"), '{"c": 1}')
    assert accepts(constraint.json_schema({"type": "object"}, "it"), '{"c": 1}')
    assert accepts(constraint.json_schema({"properties": {"a": {}}, "required": ["z"]}, "it"), '{"z": 1}')
    base = {"type": "object", "properties": {"a": {}}}
    put_together = {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {}}}], "$defs": {"base": base}}
    assert accepts(constraint.json_schema(put_together, "it"), '{"a": 1, "b": 2}')
    beside = {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {"required": ["c"]}]}
    assert accepts(constraint.json_schema(beside, "it"), '{"b": 2, "a": 1}')


def test_more_choices_than_can_be_followed_are_refused() -> None:
    options = [f"x{number}" for number in range(constraint.MAX_CHOICES)]
    assert verdict(constraint.choice(options, "it")) == (None, None)
    assert accepts(constraint.choice(options, "it"), options[-1])
    with pytest.raises(GrammarError, match="1001"):
        constraint.choice([*options, "y"], "it")
