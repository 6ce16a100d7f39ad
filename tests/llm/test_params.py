"""Sampling parameters are checked where they are written, and as the server checks them."""

import contextlib
import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from octavo import InvalidRequest, OctavoError, SamplingParams, StructuredOutputsParams
from octavo.llm.prompts import raw_requests
from octavo.server.dialects.openai_completions import CompletionRequest
from octavo.server.errors import ApiError

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.floats(-3, 3),
    st.sampled_from([0.01, 0.009, 20, 21, 100, 101, -100, 2**63, 2**63 - 1, -(2**63), float("nan"), float("inf")]),
    st.booleans(),
    st.sampled_from(["1", [], {}]),
)
FIELDS = st.one_of(
    *(
        st.tuples(st.just(name), NUMBERS)
        for name in SamplingParams.__dataclass_fields__
        if name
        not in (
            "stop",
            "stop_token_ids",
            "allowed_token_ids",
            "bad_words",
            "logit_bias",
            "max_tokens",
            "structured_outputs",
            "repetition_detection",
        )
    ),
    st.tuples(
        st.just("repetition_detection"),
        st.dictionaries(st.sampled_from(["max_pattern_size", "min_pattern_size", "min_count"]), NUMBERS, max_size=3),
    ),
    st.tuples(st.just("max_tokens"), NUMBERS.filter(lambda value: value != 0)),  # the server's scores an echoed prompt
    st.tuples(st.just("stop"), st.one_of(st.text(max_size=300), st.lists(st.text(max_size=3) | st.none(), max_size=6))),
    st.tuples(st.just("bad_words"), st.lists(st.text(max_size=3) | st.text(min_size=128) | st.none(), max_size=6)),
    st.tuples(st.just("allowed_token_ids"), st.lists(st.integers(-1, 3) | st.booleans() | st.floats(0, 1), max_size=3)),
    st.tuples(st.just("stop_token_ids"), st.lists(st.integers(-1, 3) | st.booleans() | st.floats(0, 1), max_size=3)),
    st.tuples(st.just("logit_bias"), st.dictionaries(st.integers(0, 3), NUMBERS, max_size=2)),
)


@given(FIELDS)
def test_the_limits_are_the_servers(field: tuple[str, Any]) -> None:
    name, value = field
    taken = None
    with contextlib.suppress(ValidationError):
        taken = CompletionRequest.model_validate({"prompt": "x", name: value})
    if taken is not None:
        SamplingParams(**{name: value})
        return
    with pytest.raises(OctavoError) as refused:
        SamplingParams(**{name: value})
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


TAG = {"type": "structural_tag", "format": {"type": "regex", "pattern": "[a-c]{2}"}}
STRUCTURED = st.dictionaries(
    st.sampled_from([field.name for field in dataclasses.fields(StructuredOutputsParams)]),
    st.none()
    | st.booleans()
    | st.integers(0, 1)
    | st.sampled_from(["", "a", "(", "{}", '{"type": "string"}', 'start: "a"', 'root ::= "a"', "x-guidance", "\ud800"])
    | st.sampled_from([{}, {"type": "object"}, {"divisibleBy": 2}, {"$ref": 5}, TAG])
    | st.lists(st.text(max_size=2) | st.none(), max_size=3),
    max_size=2,
).filter(lambda wanted: wanted.get("disable_any_whitespace", False) is not None)  # null is nothing to the server


@given(STRUCTURED)
def test_what_an_answer_must_look_like_is_checked_as_by_the_server(wanted: dict[str, Any]) -> None:
    body = None
    with contextlib.suppress(ValidationError):
        body = CompletionRequest.model_validate({"prompt": "x", "structured_outputs": wanted})
    try:
        expected = body and body.constraint()
    except (ApiError, InvalidRequest) as error:
        expected = str(error).removesuffix(".")
    if body is not None and not isinstance(expected, str):
        [request] = raw_requests("x", SamplingParams(structured_outputs=wanted))
        assert request.constraint is not None
        assert (request.constraint.source, request.constraint.field) == (expected.source, expected.field)
        return
    with pytest.raises(InvalidRequest) as refused:
        raw_requests("x", SamplingParams(structured_outputs=wanted))
    assert "structured_outputs" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert expected in (None, str(refused.value))


def test_what_an_answer_must_look_like_may_be_a_dict() -> None:
    given = SamplingParams(structured_outputs={"choice": ["a", "b"]})
    assert given == SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a", "b"]))
    assert copy.deepcopy(given) == given == pickle.loads(pickle.dumps(given))  # noqa: S301
    with pytest.raises(ValueError, match=r"^structured_outputs has no 'jsno'; did you mean 'json'\?$"):
        SamplingParams(structured_outputs={"jsno": {}})
    with pytest.raises(ValueError, match=r"^'structured_outputs' must have exactly one of json, json_object, regex"):
        StructuredOutputsParams(regex="a", choice=["a"])
    with pytest.raises(ValueError, match=r"^structured_outputs\.regex is 3, but must be a string$"):
        StructuredOutputsParams(regex=3)  # type: ignore[arg-type]


def test_a_programs_schema_is_read_as_one_that_was_sent() -> None:
    def made(schema: dict[Any, Any]) -> Any:
        return raw_requests("x", SamplingParams(structured_outputs={"json": schema}))[0].constraint

    assert made({"properties": {1: {"enum": ("a", "b")}}}) == made({"properties": {"1": {"enum": ["a", "b"]}}})
    circular: dict[str, Any] = {}
    circular["not"] = circular
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"not": deep}
    no_json: list[Any] = [{1}, float("nan"), np.int64(1), b"a", 10**400, "\ud800", circular, deep]
    for value in no_json:
        with pytest.raises(InvalidRequest, match=r"^'structured_outputs\.json' cannot be kept to: [^\n]*$") as refused:
            made({"const": value})
        assert refused.value.field == "structured_outputs.json"
        assert len(str(refused.value)) < 300


def test_an_unknown_name_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(TypeError, match=r"^SamplingParams has no 'temprature'; did you mean 'temperature'\?$"):
        SamplingParams(temprature=0.5)  # type: ignore[call-arg]


def test_a_wrong_value_is_one_line_with_what_would_work() -> None:
    with pytest.raises(ValueError, match=r"^temperature is -1, but must be from 0 to 2$"):
        SamplingParams(temperature=-1)
    with pytest.raises(ValueError, match=r"^min_tokens is 5, more than max_tokens, 2$"):
        SamplingParams(min_tokens=5, max_tokens=2)


def test_numbers_may_be_numpys() -> None:
    params = SamplingParams(seed=np.int64(3), temperature=np.float32(0.5), stop_token_ids=[np.int32(1)])  # type: ignore[arg-type]
    assert params == SamplingParams(seed=3, temperature=0.5, stop_token_ids=(1,))
    assert type(params.seed) is int
    assert type(params.temperature) is float


def test_they_can_be_copied_and_sent_to_another_process() -> None:
    params = SamplingParams(temperature=0.5, stop="x", logit_bias={1: 2})
    assert copy.deepcopy(params) == params == pickle.loads(pickle.dumps(params))  # noqa: S301
