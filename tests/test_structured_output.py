"""Structured output on real input, through the OpenAI SDK: the default model keeps to whatever is asked of it.

Needs the model, as `test_default_model` does.
"""

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

pytestmark = [
    pytest.mark.skipif(os.environ.get("OCTAVO_TEST_OFFLINE") == "1", reason="no network to fetch the model from"),
    pytest.mark.timeout(300),
]

MODEL = "smollm2:135m"
TAG = {
    "type": "tag",
    "begin": "<age>",
    "content": {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 120}},
    "end": "</age>",
}
TAGS = {"type": "triggered_tags", "triggers": ["<age"], "tags": [TAG], "at_least_one": True}
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about a person called John."}]


class Person(BaseModel):
    """What the model is to say."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    hobbies: list[Literal["reading", "running", "cooking"]] = Field(max_length=3)


@pytest.fixture(scope="module")
def client(default_server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{default_server}/v1", api_key="EMPTY", timeout=200, max_retries=0)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**({"model": MODEL, "messages": MESSAGES, "max_tokens": 200} | fields))


def said(client: openai.OpenAI, **fields: Any) -> list[str]:
    return [choice.message.content for choice in ask(client, **fields).choices]


def person_format(**keywords: Any) -> dict[str, Any]:
    schema = Person.model_json_schema() | keywords
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}


def test_the_sdk_parses_what_it_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=MESSAGES, max_tokens=200, response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person)
    assert answer.choices[0].finish_reason == "stop"


def test_streamed_it_is_the_same(client: openai.OpenAI) -> None:
    fields = {"response_format": person_format(), "temperature": 0.9, "seed": 5}
    [whole] = said(client, **fields)
    stream = ask(client, stream=True, **fields)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    Person.model_validate_json(whole)
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, max_tokens=200, temperature=0.9, seed=5, response_format=Person
    ) as events:
        assert events.get_final_completion().choices[0].message.parsed is not None


def test_several_choices_and_log_probabilities(client: openai.OpenAI) -> None:
    fields = {"response_format": person_format(), "n": 4, "seed": 2, "temperature": 0.7}
    plain = said(client, **fields)
    scored = ask(client, logprobs=True, top_logprobs=2, **fields)
    assert [choice.message.content for choice in scored.choices] == plain
    for choice in scored.choices:
        Person.model_validate_json(choice.message.content)
        tokens = choice.logprobs.content
        assert "".join(entry.token for entry in tokens if "<|im_end|>" not in entry.token) == choice.message.content


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": r"\d{3}-\d{4}"}, r"[0-9]{3}-[0-9]{4}"),
        ({"choice": ["positive", "negative"]}, "positive|negative"),
        ({"grammar": 'root ::= "yes" | "no" " "* "!"'}, "yes|no *!"),
        ({"json": {"type": "integer", "maximum": 9, "minimum": 0}}, "[0-9]"),
        ({"json": '{"enum": ["a b", null]}', "disable_any_whitespace": True}, '"a b"|null'),
        ({"json_object": True}, r"(?s)\{.*"),
        ({"structural_tag": json.dumps({"type": "structural_tag", "format": TAG})}, r"<age>[0-9]{1,3}</age>"),
        ({"structural_tag": {"format": TAGS}}, r"(?s)(<age>[0-9]{1,3}</age>((?!<age).)*)+"),
    ],
)
def test_every_kind_of_structure(client: openai.OpenAI, wanted: dict[str, Any], pattern: str) -> None:
    [text] = said(client, extra_body={"structured_outputs": wanted}, temperature=1.0, seed=1)
    assert re.fullmatch(pattern, text)
    completed = client.completions.create(
        model=MODEL, prompt="The answer:", max_tokens=200, extra_body={"structured_outputs": wanted}
    )
    assert re.fullmatch(pattern, completed.choices[0].text)


def test_calls_in_tags_of_the_clients_own(client: openai.OpenAI) -> None:
    """In the older way, as clients of vLLM ask for calls in a format that no model knows."""
    structures = [{"begin": f"<call={name}>", "schema": Person.model_json_schema(), "end": "</call>"} for name in "ab"]
    wanted: Any = {"type": "structural_tag", "structures": structures, "triggers": ["<call="]}
    fields: dict[str, Any] = {"prompt": "Calls are written like this.\n<call=a>" * 3, "max_tokens": 150}
    made = 0
    for seed in range(2):
        fields |= {"seed": seed, "extra_body": {"response_format": wanted}}
        [choice] = client.completions.create(model=MODEL, **fields).choices
        calls = re.findall(r"(?s)<call=([ab])>(.*?)</call>", choice.text)
        assert choice.text.count("<call=") - len(calls) in ((0, 1) if choice.finish_reason == "length" else (0,))
        for _, arguments in calls:
            Person.model_validate_json(arguments)
            made += 1
    assert made, "the prompt leaves the model little else to say"
    assert said(client, response_format=wanted, max_tokens=20)


def test_stop_strings_and_lengths_cut_it(client: openai.OpenAI) -> None:
    fields = {"response_format": person_format(), "temperature": 0}
    [whole] = said(client, **fields)
    cut = ask(client, stop=["age"], **fields).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index("age")], "stop")
    short = ask(client, **(fields | {"max_tokens": 5})).choices[0]
    assert short.finish_reason == "length"
    assert whole.startswith(short.message.content)


def test_what_leaves_no_token_to_draw_is_the_requests_mistake(client: openai.OpenAI) -> None:
    yes = {"structured_outputs": {"choice": ["yes"]}}
    for fields in ({"allowed_token_ids": [500]}, {"bad_words": ["y", "ye", "yes"]}):
        with pytest.raises(openai.BadRequestError, match=f"grammar and {next(iter(fields))} leave no token to draw"):
            ask(client, extra_body=yes | fields)
    with pytest.raises(openai.BadRequestError, match="min_tokens is 10, but the grammar is complete after"):
        ask(client, extra_body=yes | {"min_tokens": 10})
    # Found out in the middle of a stream, it is an event.
    never_b = {"structured_outputs": {"regex": "a{20}b"}, "bad_words": ["b", "ab", "aab", "aaab", "aaaab"]}
    with pytest.raises(openai.APIError, match="no token to draw after") as caught:
        list(ask(client, extra_body=never_b, stream=True))
    assert caught.value.body["type"] == "invalid_request_error"


def test_32_clients_with_schemas_of_their_own_and_16_without(client: openai.OpenAI, default_server: str) -> None:
    """Compiling goes on beside: whoever wants no schema gets the text that it gets alone."""
    alone = said(client, max_tokens=16, temperature=0)

    def one(number: int) -> list[str]:
        if number % 3 == 2:
            return said(client, max_tokens=16, temperature=0)
        values = [f"value {number} {n}" for n in range(50)]
        schema = {"type": "object", "properties": {f"key{number}": {"enum": values}}, "required": [f"key{number}"]}
        wanted = {"type": "json_schema", "json_schema": {"schema": schema | {"additionalProperties": False}}}
        [text] = said(client, response_format=wanted, max_tokens=60)
        jsonschema.validate(json.loads(text), schema)
        return alone

    with ThreadPoolExecutor(48) as pool:
        assert list(pool.map(one, range(48))) == [alone] * 48


def test_what_nobody_could_compile_is_refused_while_others_go_on(client: openai.OpenAI, default_server: str) -> None:
    hard = {"type": "object", "properties": {f"p{n}": {"pattern": f"(a|b)*a(a|b){{{n % 40}}}"} for n in range(2500)}}
    deep: dict[str, Any] = {}
    for _ in range(3000):
        deep = {"items": deep}
    wide = {"anyOf": [{"const": n} for n in range(20_000)]}
    stream = ask(client, stream=True, max_tokens=60, temperature=0)
    for schema in (hard, deep, wide):
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 5}
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        content = json.dumps(body | {"response_format": wanted}) if schema is not deep else _nested(body)
        answer = httpx.post(f"{default_server}/v1/chat/completions", content=content, timeout=60)
        assert answer.status_code in ((200, 400) if schema is hard else (400,)), answer.text
    assert sum(len(chunk.choices) for chunk in stream) >= 50


def _nested(body: dict[str, Any]) -> str:
    """What Python's own encoder would not write."""
    schema = '{"items":' * 3000 + "{}" + "}" * 3000
    return json.dumps(body)[:-1] + ',"response_format":{"type":"json_schema","json_schema":{"schema":' + schema + "}}}"


def test_an_engine_that_dies_in_the_middle_goes_on_with_the_same_json(
    client: openai.OpenAI, default_server: str
) -> None:
    fields = {"response_format": person_format(), "temperature": 0.8, "seed": 9}
    [whole] = said(client, **fields)
    stream = ask(client, stream=True, **fields)
    text = ""
    for number, chunk in enumerate(stream):
        text += chunk.choices[0].delta.content or ""
        if number == 5:
            _kill_engine(default_server)
    assert text == whole


def _kill_engine(url: str) -> None:
    import psutil

    port = int(url.rsplit(":", 1)[1])
    supervisor = next(
        process
        for process in psutil.Process().children(recursive=True)
        if any(connection.laddr.port == port for connection in process.net_connections("tcp"))
    )
    family = supervisor.children(recursive=True) + (supervisor.parent() or supervisor).children(recursive=True)
    engine = next(process for process in family if "octavo.engine.process" in " ".join(process.cmdline()))
    engine.kill()
    deadline = time.monotonic() + 60
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
