"""Grammars of calls: whatever they allow is read as calls whose arguments are valid, and what is written is allowed."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from octavo.errors import OctavoError
from octavo.grammar.constraint import Constraint, either, json_schema, several
from octavo.text.answer import AnswerFormat
from octavo.text.parts import Part, Reasoning, Text, ToolCall, join_parts
from octavo.text.tools import Tool
from tests.properties import FUZZ_FACTOR
from tests.text.formats import FORMATS, TOOLS, WEATHER, parser_name, written

EOS = 256
ORDINARY = frozenset(b"abcdefghij ABC123{}[]\"\\:,.\n<>/=_()|tolcrue'")
SCHEMAS = {tool.name: tool.schema for tool in TOOLS}
# Qwen's and GLM's tokenizers have these as ordinary tokens.
NEVER_SPECIAL = ("hermes", "qwen3_coder", "glm45")


class Bytes:
    """A vocabulary of all bytes and some special tokens, as llguidance asks for one."""

    eos_token_id = EOS
    bos_token_id = None

    def __init__(self, special: Sequence[str]) -> None:
        self.special = list(special)
        self.tokens = [*(bytes([byte]) for byte in range(256)), b"<eos>", *(text.encode() for text in special)]
        self.special_token_ids = list(range(EOS, len(self.tokens)))
        self.ids = {text: EOS + 1 + index for index, text in enumerate(special)}
        self._split = re.compile(f"({'|'.join(map(re.escape, special)) or '(?!)'})")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def encode(self, text: str) -> list[int]:
        pieces = self._split.split(text)
        return [
            token for piece in pieces for token in ([self.ids[piece]] if piece in self.ids else list(piece.encode()))
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(self.tokens[token] for token in tokens).decode("utf-8", "replace")


def answer_format(form: str, reasoning: bool) -> AnswerFormat:
    found = AnswerFormat.of(None, "", parser_name(form), "qwen3" if reasoning else None)
    return found if reasoning else AnswerFormat(found.tools)


def vocabulary(form: AnswerFormat, name: str, special: bool) -> Bytes:
    markers = form.tools.markers if name != "mistral" else ("[TOOL_CALLS]",)
    reasoning = form.reasoning.markers if form.reasoning else ()
    return Bytes([*markers, *reasoning] if special else [])


def matcher(vocabulary: Bytes, grammar: str) -> LLMatcher:
    found = LLMatcher(LLTokenizer(TokenizerWrapper(vocabulary)), grammar)
    assert not found.is_error(), f"{found.get_error()}\n{grammar}"
    return found


def walk(vocabulary: Bytes, grammar: str, phrases: Sequence[str], chance: random.Random) -> str | None:
    """An answer that the grammar allows; None if it comes to no end."""
    state = matcher(vocabulary, grammar)
    tokens: list[int] = []
    for step in range(1200):
        allowed = [token for token, bias in enumerate(state.compute_logit_bias()[: len(vocabulary.tokens)]) if bias]
        if state.is_stopped() or allowed == [EOS] or (EOS in allowed and (chance.random() < 0.3 or step > 400)):
            return vocabulary.decode(tokens)
        allowed = [token for token in allowed if token > EOS or token in ORDINARY] or sorted({*allowed} - {EOS})
        if len(allowed) > 20 and chance.random() < 0.15:
            phrase = vocabulary.encode(chance.choice(phrases))
            tokens += phrase[: state.try_consume_tokens(phrase)]
            continue
        closing = [token for token in allowed if token > EOS or chr(token) in '"}])']
        tokens.append(chance.choice(closing if closing and (chance.random() < 0.3 or step > 200) else allowed))
        state.consume_token(tokens[-1])
    return None


def read(form: AnswerFormat, text: str, thinking: bool) -> list[Part]:
    parser = form.parser(TOOLS, thinking=thinking)
    return join_parts(parser.push(text) + parser.flush())


@pytest.mark.parametrize("special", [True, False], ids=["special", "text"])
@pytest.mark.parametrize("form", FORMATS)
def test_what_a_grammar_allows_is_read_as_valid_calls(form: str, special: bool) -> None:
    if form in (NEVER_SPECIAL if special else ("openai", "mistral_v11")):
        pytest.skip("no such vocabulary")
    for number in range(12 * max(FUZZ_FACTOR, 1)):
        chance = random.Random(number)
        required, parallel = number % 2 == 0, number % 4 < 2
        thinking = number % 3 == 0
        found = answer_format(form, reasoning=number % 3 < 2)
        thinking = thinking and found.reasoning is not None
        tokens = vocabulary(found, form, special)
        grammar = found.grammar(TOOLS, tokens.ids, required=required, parallel=parallel, thinking=thinking)
        if grammar is None:
            assert not required
            continue
        calls = [written(form, [("now", {})]), written(form, [("get_weather", {"city": "x"})])]
        text = walk(tokens, grammar, [*calls, *found.markers, "</think>", "</parameter>", '"', "}"], chance)
        if text is None:
            continue
        parts = read(found, text, thinking)
        calls = [part for part in parts if isinstance(part, ToolCall)]
        assert calls or not required, text
        assert parallel or len(calls) <= 1, text
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        if required and form != "openai":
            assert all(isinstance(part, ToolCall | Reasoning) for part in parts), text


@pytest.mark.parametrize(
    ("form", "special"), [("openai", True), ("openai", False), ("hermes", True), ("hermes", False)]
)
@pytest.mark.parametrize("calls", [True, False])
def test_an_answer_behind_reasoning_keeps_to_its_schema(form: str, special: bool, calls: bool) -> None:
    """However long a model thinks, and though it may call instead."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wanted = json_schema(schema, "it")
    thought = said = 0
    for number in range(30 * max(FUZZ_FACTOR, 1)):
        found = answer_format(form, reasoning=form != "openai")
        thinking = found.reasoning is not None and number % 2 == 0
        tokens = vocabulary(found, form, special)
        before = found.before_answer(tokens.ids, thinking=thinking)
        assert before is not None
        grammar = replace(wanted, source=several(before, answer=wanted.source))
        if calls:
            required = found.grammar(TOOLS, tokens.ids, required=True, parallel=True, thinking=thinking)
            assert required is not None
            grammar = either(Constraint(required, "tools"), grammar)
        phrases = [*found.markers, found.end_of_reasoning, '{"a": "b"}']
        text = walk(tokens, grammar.source, phrases, random.Random(number))
        parts = [] if text is None else read(found, text, thinking)
        called = [part for part in parts if isinstance(part, ToolCall)]
        for call in called:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        if parts and not called:
            [answer] = [part.text for part in parts if isinstance(part, Text)]
            jsonschema.validate(json.loads(answer), schema)
            said += 1
            thought += any(isinstance(part, Reasoning) for part in parts)
    assert said
    assert thought


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("required", [True, False])
def test_what_models_write_is_allowed(form: str, required: bool) -> None:
    calls = [("get_weather", {"city": "Oslo", "days": 2, "units": "metric"}), ("now", {})]
    found = answer_format(form, reasoning=form != "openai")
    tokens = vocabulary(found, form, special=form not in NEVER_SPECIAL)
    text = written(form, calls[:1] if form == "openai" else calls).replace("[TOOL_CALLS] [", "[TOOL_CALLS][")
    text = text.replace("'", '"') if form == "pythonic" else text
    answers = [text]
    if form != "openai":
        answers.append(f"<think>\nhm <tool\n</think>\n\n{text}")
    if not required:
        answers += ["" if form == "openai" else "Just text.", *(() if form == "openai" else (f"Let me see.\n{text}",))]
    grammar = found.grammar(TOOLS, tokens.ids, required=required, parallel=True, thinking=False)
    for answer in answers if grammar else []:
        state = matcher(tokens, grammar)
        encoded = tokens.encode(answer)
        assert state.try_consume_tokens(encoded) == len(encoded), answer
        assert answer == "" or state.is_accepting(), answer


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "json"])
def test_with_auto_the_grammar_takes_hold_at_a_calls_opening(form: str) -> None:
    found = answer_format(form, reasoning=False)
    tokens = vocabulary(found, form, special=form not in NEVER_SPECIAL)
    grammar = found.grammar(TOOLS, tokens.ids, required=False, parallel=True, thinking=False)
    assert grammar is not None
    wrong = written(form, [("get_weather", {"city": 5})]).replace("[TOOL_CALLS] [", "[TOOL_CALLS][")
    wrong = wrong.replace("<parameter=city>", "<parameter=town>").replace("<arg_key>city", "<arg_key>town")
    encoded = tokens.encode(wrong)
    consumed = matcher(tokens, grammar).try_consume_tokens(encoded)
    assert tokens.decode(encoded[:consumed]) in wrong[: wrong.index("5") + 1]
    assert consumed < len(encoded)


@pytest.mark.parametrize("form", ["qwen3_coder", "glm45"])
def test_strings_without_quotes_keep_to_their_schemas(form: str) -> None:
    tool = Tool(
        name="f",
        parameters={
            "properties": {"s": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^a/"}, "free": True},
            "required": ["s", "free"],
        },
    )
    found = answer_format(form, reasoning=False)
    grammar = found.grammar([tool], {}, required=True, parallel=False, thinking=False)
    assert grammar is not None
    for value, fits in (("a/", True), ("a/bc", True), ("a/bcd", False), ("b/", False), ("a", False)):
        text = list(written(form, [("f", {"s": value, "free": "x\ny"})]).encode())
        state = matcher(Bytes([]), grammar)
        assert (state.try_consume_tokens(text) == len(text) and state.is_accepting()) == fits, value


@pytest.mark.parametrize("form", ["qwen3_coder", "glm45"])
def test_patterns_of_strings_without_quotes(form: str) -> None:
    """They match anywhere in the string, and stand by themselves: one that is wrong is refused."""
    found = answer_format(form, reasoning=False)

    def begun(pattern: str) -> LLMatcher:
        tool = Tool(
            name="f", parameters={"properties": {"s": {"type": "string", "pattern": pattern}}, "required": ["s"]}
        )
        grammar = found.grammar([tool], {}, required=True, parallel=False, thinking=False)
        assert grammar is not None
        return LLMatcher(LLTokenizer(TokenizerWrapper(Bytes([]))), grammar)

    for pattern in (r"b\/c", "b/c", "[/]c"):
        for value, fits in (("ab/cd", True), ("/c", pattern == "[/]c"), ("b|c", False)):
            text = list(written(form, [("f", {"s": value})]).encode())
            state = begun(pattern)
            assert (state.try_consume_tokens(text) == len(text) and state.is_accepting()) == fits, (pattern, value)
    for pattern in ("a)(b", "(a", "a)|(b"):
        assert begun(pattern).is_error()


@pytest.mark.parametrize("form", ["qwen3_coder", "glm45", "pythonic"])
def test_what_a_format_cannot_be_held_to_is_said(form: str) -> None:
    parameters = {**WEATHER.parameters, "anyOf": [{"required": ["days"]}, {"required": ["exact"]}]}
    tools = [Tool(name="f", parameters=parameters)]
    with pytest.raises(OctavoError, match=r"Tool 'f': its parameters have anyOf"):
        answer_format(form, reasoning=False).grammar(tools, {}, required=True, parallel=True, thinking=False)
