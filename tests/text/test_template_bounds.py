"""Templates that would never end, or fill the memory, end with one line; the others do what Jinja does."""

import json
from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text import ChatTemplate, TemplateError, bounds
from octavo.text import template as text_template
from tests.properties import examples

MESSAGES = [{"role": "user", "content": "x" * 1000}]


def nested(value: str, start: str) -> str:
    """Wrap a value a hundred times in something that holds it twice."""
    turn = "{% set ns.x = " + value + " %}"
    return "{% set ns = namespace(x=" + start + ") %}{% for i in range(100) %}" + turn + "{% endfor %}{{ ns.x }}"


BOMBS = {
    "loop over a string": "{% for c in 'x' * 10**9 %}{% endfor %}",
    "loops in loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "loops over the message": "{% set c = messages[0].content %}"
    "{% for i in c %}{% for j in c %}{% for k in c %}{% endfor %}{% endfor %}{% endfor %}",
    "loops that let nothing in": "{% for i in range(9999) %}"
    "{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "text in loops": "{% for i in range(9999) %}{% for j in range(9999) %}" + "y" * 999 + "{% endfor %}{% endfor %}",
    "macros that call themselves twice": (
        "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "macros without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a block in itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "a recursive loop": "{% for x in [[1, 2]] recursive %}{{ loop([[1], [2]]) }}{{ loop([[1], [2]]) }}{% endfor %}",
    "captured output": "{% set x %}{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}{% endset %}",
    "captured lists": "{% set y = ['x'] * 400000 %}"
    "{% set x %}{% for i in range(99999) %}{{ y }}{% endfor %}{% endset %}",
    "a string multiplied": "{{ 'x' * 10**9 }}",
    "a list multiplied": "{{ 10**9 * [1] }}",
    "a power": "{{ 10 ** (10**10) }}",
    "squares": nested("ns.x * ns.x", "9"),
    "a string doubled": nested("ns.x + ns.x", "'x'"),
    "a string joined to itself": nested("ns.x ~ ns.x", "'x'"),
    "a list doubled": nested("ns.x + ns.x", "[1]"),
    "lists in lists": nested("[ns.x, ns.x]", "[1]"),
    "tuples in tuples": nested("(ns.x, ns.x)", "(1, 2)"),
    "dicts in dicts": nested("{'a': ns.x, 'b': ns.x}", "{}"),
    "dicts by call": nested("dict(a=ns.x, b=ns.x)", "{}"),
    "values of dicts": nested("{'a': ns.x.values(), 'b': ns.x.values()}", "{}"),
    "batches": nested("(ns.x * 2) | batch(2) | list", "[1]"),
    "arguments of macros": "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1, varargs, varargs) }}{% else %}{{ varargs }}"
    "{% endif %}{% endmacro %}{{ m(60, 1, 1) }}",
    "keywords of macros": "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1, a=kwargs, b=kwargs) }}{% else %}{{ kwargs }}"
    "{% endif %}{% endmacro %}{{ m(60, a=1, b=1) }}",
    "many arguments": "{% set c = cycler(*('x' * 60000000)) %}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format by argument": "{{ '%*d' % (10**9, 1) }}",
    "a wide format by filter": "{{ '%1000000000d' | format(1) }}",
    "a precise format": "{{ '%.1000000000f' % 1.5 }}",
    "a wide field": "{{ '{:1000000000}'.format(1) }}",
    "a wide field by argument": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "a wide field of a map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "many fields": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "many conversions": "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "filled batches": "{{ [1] | batch(10**9, 'x') | list }}",
    "slices": "{{ [1] | slice(10**9) | list }}",
    "centred": "{{ 'x' | center(10**9) }}",
    "centred by method": "{{ 'x'.center(10**9) }}",
    "zeros": "{{ '1'.zfill(10**9) }}",
    "tabs": "{{ '\\t'.expandtabs(10**9) }}",
    "indented": "{{ 'x' | indent(10**9, true) }}",
    "joined": "{{ range(99999) | join('x' * 100000) }}",
    "joined by method": "{{ ('x' * 100000).join('y' * 100000) }}",
    "replaced": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "replaced between": "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
    "wrapped": "{{ ('x' * 100000) | wordwrap(1, true, 'y' * 100000) }}",
    "words wrapped": "{{ ('ab ' * 10**6) | wordwrap(1) }}",
    "rounded": "{{ 12 | round(-1000000000) }}",
    "lists summed": "{{ ([[1]] * 100000) | sum(start=[]) }}",
    "indented JSON": "{{ [[1]] | tojson(indent=10**9) }}",
    "mapped": "{{ ('x' * 60000000) | map('upper') | list }}",
    "encoded": "{{ 'é'.encode('punycode') }}",
    "translated": "{{ 'aaa'.translate({97: 'x' * 100000}) }}",
    "bytes of a number": "{{ (1).to_bytes(10**9, 'big') }}",
    "a long date": "{{ strftime_now('%c' * 10**6) }}",
    "comparisons": "{% set x = 'x' * 30000000 %}{% set y = 'x' * 30000000 %}"
    "{% for i in range(99999) %}{{ x == y }}{% endfor %}",
    "a giant source": "{{ a }}" * 200_000,
    "deep parentheses": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "a long sum": "{{ 1" + " + 1" * 50_000 + " }}",
    "deep loops": "{% for a in b %}" * 200 + "{% endfor %}" * 200,
    "a folded constant": "{{ 'x' | center(60000000) }}{{ 'y' | center(60000000) }}",
}


EIGHTH = bounds.WORK_LIMIT // 8
LONG = {
    "captured lists",
    "loops in loops",
    "loops over the message",
    "macros that call themselves twice",
}
"""What takes all the work of a rendering takes an eighth of it here, but for `loops that let nothing in`."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BOMBS)
def test_nothing_is_without_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in LONG:
        monkeypatch.setattr(text_template, "Budget", lambda work=EIGHTH: bounds.Budget(min(work, EIGHTH)))
    if name == "comparisons":
        monkeypatch.setattr(bounds, "_SECONDS", 0.5)
    template = ChatTemplate({"default": BOMBS[name]}, {})
    with pytest.raises(TemplateError, match=r"takes more than it may|fails on these|cannot be compiled") as caught:
        template.render(MESSAGES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_long_conversation_is_no_bomb() -> None:
    source = (
        "{% for m in messages %}{% set text = m.content | trim %}<|{{ m.role }}|>{{ text + '\\n' }}"
        "{% if loop.index0 % 2 == 0 and '</think>' in text %}{{ text.split('</think>')[-1] }}{% endif %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 200_000} for _ in range(16)]
    assert len(ChatTemplate({"default": source}, {}).render(messages)) > 15_000_000
    messages = [{"role": "user", "content": "word"} for _ in range(20_000)]
    assert ChatTemplate({"default": source}, {}).render(messages).count("<|user|>word\n") == 20_000


# Random expressions over a few values, which a plain Jinja must show in the same way.

ATOMS = st.sampled_from(
    ["1", "2", "0", "-3", "'a'", "'ab c'", "''", "x", "items", "none", "true", "[]", "{}", "d.k", "1.5"]
)


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = st.sampled_from(["+", "-", "*", "~", "%", "and", "or", "==", "in", "//", "**"])
    filters = ["trim", "upper", "length", "list", "first", "join('-')", "string", "replace('a', 'b')", "default('z')"]
    filters += ["map('upper') | list", "batch(2) | list", "indent(2, true)", "center(5)", "sort", "tojson", "reverse"]
    filters += ["unique | list", "format(1)", "round(1)", "int", "title", "select | list", "items | list"]
    methods = [
        "split(' ')",
        "center(4)",
        "replace('a', 'cc')",
        "join(items)",
        "upper()",
        "format(3)",
        "items()",
        "zfill(3)",
    ]
    return st.one_of(
        st.tuples(inner, binary, inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(inner, st.sampled_from(filters)).map(lambda parts: f"({parts[0]} | {parts[1]})"),
        st.tuples(inner, st.sampled_from(methods)).map(".".join),
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.tuples(inner, inner).map(lambda parts: f"({', '.join(parts)})"),
        st.tuples(inner, inner).map(lambda parts: "{'k': " + parts[0] + ", 'l': " + parts[1] + "}"),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} if {parts[1]} else {parts[2]})"),
        st.sampled_from(["x[1:]", "items[::-1]", "items[:1]"]),
    )


EXPRESSIONS = st.recursive(ATOMS, compound, max_leaves=8)
FRAMES = [
    "{{ VALUE }}",
    "{% set y = VALUE %}[{{ y }}|{{ y }}]",
    "{% for e in VALUE %}{{ loop.index }}:{{ e }};{% endfor %}",
    "{% for e in items if VALUE %}{{ e }}{% else %}none{% endfor %}",
    "{% macro m(a, b=VALUE) %}<{{ a }}{{ b }}{{ varargs }}>{% endmacro %}{{ m(VALUE) }}{{ m(1, VALUE, 2) }}",
    "{% set y %}{{ VALUE }}!{% endset %}{{ y }}",
    "{% set ns = namespace(a=VALUE) %}{% for e in items %}{% set ns.a = e %}{% endfor %}{{ ns.a }}",
    "{% filter upper %}{{ VALUE }}{% endfilter %}",
    "{% if VALUE %}yes{% else %}no{% endif %}",
]


@examples(100)
@given(EXPRESSIONS, st.sampled_from(FRAMES))
def test_what_is_within_bounds_is_what_jinja_writes(expression: str, frame: str) -> None:
    source = frame.replace("VALUE", expression)
    variables: dict[str, Any] = {"x": "some text", "items": ["c", "a", "b a"], "d": {"k": 3}}
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    messages = [{"role": "user", "content": "hello"}]
    try:
        expected = plain.from_string(source).render(messages=messages, tools=None, **variables)
    except Exception:
        expected = None
    try:
        found = ChatTemplate({"default": source}, {}).render(messages, **variables)
    except TemplateError:
        found = None
    if expected is None or " object at 0x" not in expected:  # iterators are lists here
        assert found == expected, source
