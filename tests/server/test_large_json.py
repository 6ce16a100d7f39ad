"""Bodies of megabytes become what orjson makes of them, piece by piece."""

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.server import large_json
from tests.properties import examples

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
texts = st.text(alphabet='\\"[]{},: a\u2028é😀', max_size=40)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(texts, inner, max_size=8),
    max_leaves=60,
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "PIECE_VALUES", 3)
    monkeypatch.setattr(large_json, "PIECE_BYTES", 16)


def outcome(loads: Any, data: bytes) -> Any:
    try:
        return loads(data)
    except orjson.JSONDecodeError:
        return "no JSON"


@given(value=values, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_values_are_the_same(value: Any, indent: int | None, ascii_only: bool) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert large_json.loads(data) == orjson.loads(data)


@given(value=values, place=st.floats(0, 1), change=st.sampled_from([*'[]{},:"\\ 1', ""]))
@examples(150)
def test_what_is_no_json_is_no_json_in_pieces_either(value: Any, place: float, change: str) -> None:
    text = json.dumps(value)
    at = int(place * len(text))
    data = (text[:at] + change + text[at + 1 :]).encode()
    assert outcome(large_json.loads, data) == outcome(orjson.loads, data)


@pytest.mark.parametrize(
    "text",
    [
        "[1,2,3,4,5,6,7,]",
        "[,1,2,3,4,5,6,7]",
        "[1,2,3,,4,5,6,7]",
        "[1,2,3,4,5,6,7}",
        "{1,2,3,4,5,6,7]",
        "[1,2,3,4],[5,6,7,8]",
        "[1,2,3,4]x[5,6,7,8]",
        "x[1,2,3,4,5,6,7]",
        "[1,2,3,4,5,6,7]x",
        "1,2,3,4,5,6,7",
        '{"a":1,"b":2,"c":3,"d":4,"e"}',
        '{"a":1,"b":[1,2,3,4,5,6],"c":3,"d":4,"e":}',
        '{"a":[1,2,3,4,5,6,7] "b":2}',
        '{"a" "b":[1,2,3,4,5,6,7]}',
        '{a:[1,2,3,4,5,6,7],"b":2}',
        '{"a":1:[1,2,3,4,5,6,7]}',
        '{"a":[1,2,3,4,5,6,7],"a":[1,2,3,4,5,6,8]}',
        '["a","b","c","d","e","f]',
        '["a\\\\","b\\"","c\\\\\\"","d","e","f"]',
        "[" * 5000,
        "[" * 1500 + "]" * 1500,
        "",
        "[[[[[[[[]]]]]]]]",
        "[ \n\t]",
        "[1,2,3,4,5,\x0b[6]]",
        '{"a":"%s"}' % ("\\ud83d\\ude00" * 20),
        '{"a":"%s"}' % ("\\ud83d" * 20),
        '{"a":"%s"}' % ("\\ude00" * 20),
        '{"a":"x%s"}' % ("\\\\" * 50),
        '{"a":"%s\\u00e9"}' % ("é😀紙" * 20),
        "[" + " " * 50 + "]",
        '{"%s" x:1}' % ("x" * 50),
        '{"%s":1}' % ("\\u00e9" * 50),
        '{"a":"%s\\x"}' % ("x" * 50),
        '{"a":"%s\\u12"}' % ("x" * 50),
        '{"a":"%s\n"}' % ("x" * 50),
        '{"a": "%s" 5}' % ("x" * 50),
        '{"a":5"%s"}' % ("x" * 50),
        '{"a":"x""%s"}' % ("x" * 50),
        '["%s"]' % ("x" * 50),
        '"%s"' % ("x" * 50),
        "1" * 50,
        '{"a":0.%s}' % ("1" * 50),
        " " * 50 + "5" + " " * 50,
        "truefalse" * 10,
    ],
)
def test_borders(text: str) -> None:
    assert outcome(large_json.loads, text.encode()) == outcome(orjson.loads, text.encode())


def test_bodies_of_their_real_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rng = random.Random(1)
    ids = [[rng.randrange(50_000) for _ in range(rng.randrange(1, 900))] for _ in range(1000)]
    messages = [{"role": "user", "content": 'a "quoted", [text] \\'} for _ in range(30_000)]
    for body in (
        {"prompt": ids, "n": 1},
        {"messages": messages},
        {"prompt": '", [{\\' * 1_000_000},
        {"prompt": "a\u00e9\u7d19\U0001f600" * 500_000},
    ):
        for ascii_only in (True, False):
            assert large_json.loads(json.dumps(body, ensure_ascii=ascii_only).encode()) == body


def test_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for text, words in (
        (b"[" + b"1," * 2**21 + b"1]", "1,048,576 values"),
        (b"[" + b"[]," * 2**18 + b"1]", "131,072 objects"),
    ):
        with pytest.raises(large_json.TooManyValuesError, match=words):
            large_json.loads(text)
    assert len(large_json.loads(json.dumps({"prompt": "1," * 2**21}).encode())["prompt"]) == 2**22
