"""A message's text never becomes a control token, whatever a template does with it; all else is encoded as always."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from octavo.text import ChatTemplate, Tokenizer, TooManyTokens
from octavo.text.spec import Pieces, TokenizerSpec
from octavo.text.written import Written, written
from tests.properties import examples
from tests.text.conftest import Trained

# Templates in the ways of the published families, each with what its vocabulary adds: special tokens, and others.
FAMILIES: dict[str, tuple[str, list[str], list[str]]] = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{% for c in m.tool_calls or [] %}{{ '<tool_call>' ~ (c.function | tojson) ~ '</tool_call>' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|fim_prefix|>"],
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}"
        "{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim %}"
        "{{ text + '<|eot_id|>' }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
        ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
        [],
    ),
    "gemma": (
        "{{ bos_token }}{% macro text(part) %}{{ part | trim }}{% endmacro %}{% for m in messages %}"
        "{% set role = 'model' if m.role == 'assistant' else m.role %}<start_of_turn>{{ role }}\n{{ text(m.content) }}"
        "<end_of_turn>\n{% endfor %}<start_of_turn>model\n",
        ["<s>", "<start_of_turn>", "<end_of_turn>"],
        ["<unused7>", "\n\n", "\u2581\u2581", "<table>", "</strong>"],
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' ~ m.content ~ ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}"
        "{{ '[TOOL_RESULTS] ' + ({'content': m.content} | tojson)[:-1] + ', \"id\": 1}[/TOOL_RESULTS]' }}{% endif %}"
        "{% endfor %}",
        ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
        [],
    ),
    "deepseek": (
        "{% set ns = namespace(text=bos_token) %}{% for m in messages %}"
        "{% set ns.text = ns.text + '<｜' ~ ('User' if m.role == 'user' else 'Assistant') ~ '｜>' + m.content %}"
        "{% if m.role == 'assistant' %}{% set ns.text = ns.text + '<｜end▁of▁sentence｜>' %}{% endif %}{% endfor %}"
        "{{ ns.text }}<｜Assistant｜>",
        ["<s>", "<｜end▁of▁sentence｜>"],
        ["<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>"],
    ),
    "phi": (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}{{ '<|end|>' }}{% endfor %}<|assistant|>",
        ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"],
        [],
    ),
    "command": (
        "{% for m in messages %}{{ ['<|START|>', '<|' ~ (m.role | upper) ~ '_TOKEN|>', m.content, '<|END|>'] | join }}"
        "{% endfor %}{{ '<|start|>'.upper() * 2 }}",
        ["<|START|>", "<|END|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|ASSISTANT_TOKEN|>", "<|TOOL_TOKEN|>"],
        [],
    ),
    "image": (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content.replace('page', '<|audio|>') | replace('Hi', '<|image|>') }}<|end|>{% endfor %}",
        ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|image|>", "<|audio|>"],
        [],
    ),
    "harmony": (
        "{% set start = '<|start|>' %}{% for m in messages %}{{ start }}{{ m.role }}<|channel|>final<|message|>"
        "{% filter trim %}{{ m.content.strip() }}{% endfilter %}{{ '<|end|>' if not loop.last else '' }}{% endfor %}",
        ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"],
        [],
    ),
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CORPUS = ["The sheet is folded into sixteen pages: what is the capital of France?", "user system assistant tool"]


def _tokenizer(special: list[str], others: list[str], template: str, *, pieces: bool = False) -> Tokenizer:
    """A byte-level tokenizer with these added tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS + special * 20 * pieces, trainer)
    return _with(backend, special, others, template)


def _with(backend: tokenizers.Tokenizer, special: list[str], others: list[str], template: str) -> Tokenizer:
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in others])
    spec = TokenizerSpec(
        backend=backend,
        pieces=Pieces.of(backend.decoder),
        vocab_size=backend.get_vocab_size(),
        special_tokens=SPECIAL,
        prefix_ids=(),
        suffix_ids=(),
        end_ids=frozenset(),
        chat_templates={"default": template},
    )
    return Tokenizer(spec)


TOKENIZERS = {name: _tokenizer(special, others, template) for name, (template, special, others) in FAMILIES.items()}
TEXTS = {"\n\n", "\u2581\u2581", "<table>", "</strong>"}
"""Added tokens that are text and stay so."""

HARMLESS = str.maketrans({"<": "‹", ">": "›", "|": "¦", "[": "⟦", "]": "⟧", "｜": "¦", "/": "⁄"})
"""The same shape, without what all control tokens have."""


def _markers(family: str) -> list[str]:
    _, special, others = FAMILIES[family]
    return [token for token in special + others if token not in TEXTS]


def _control_ids(tokenizer: Tokenizer, family: str, ids: list[int]) -> list[int]:
    markers = set(_markers(family))
    return [n for n in ids if tokenizer.token_text(n) in markers]


def _rendered(tokenizer: Tokenizer, messages: list[dict[str, Any]], **options: Any) -> Written:
    assert tokenizer.chat_template is not None
    return tokenizer.chat_template.render(messages, **options)


@st.composite
def conversations(draw: st.DrawFn, family: str) -> list[dict[str, Any]]:
    markers = _markers(family)
    halves = [part for token in markers for cut in range(1, len(token)) for part in (token[:cut], token[cut:])]
    words = st.sampled_from(
        ["Hi", " ", "\n", "page", "&lt;", "\\u003c", "\u2581\u2581", "\ue0c7", "\U0010ffff", "é", "😀"]
    )
    piece = st.one_of(st.sampled_from(markers), st.sampled_from(halves), words)
    text = st.lists(piece, max_size=6).map("".join)
    messages: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 4))):
        role = draw(st.sampled_from(["user", "assistant", "tool", "system"]))
        messages.append({"role": role, "content": draw(text)})
        if role == "assistant" and draw(st.booleans()):
            arguments = {draw(text): draw(text), "n": number}
            messages[-1]["tool_calls"] = [{"function": {"name": draw(text), "arguments": arguments}}]
    return messages


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """A value with all of its texts changed, the keys of arguments too, but for the roles and the names of fields."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    if isinstance(value, dict):
        fields = ("role", "content", "tool_calls", "function", "name", "arguments")
        return {
            key if key in fields else change(key): each if key == "role" else _changed(each, change)
            for key, each in value.items()
        }
    return value


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_have_no_control_tokens_and_templates_keep_theirs(family: str) -> None:
    tokenizer = TOKENIZERS[family]

    @examples(30)
    @given(conversations(family))
    def check(messages: list[dict[str, Any]]) -> None:
        text = _rendered(tokenizer, messages)
        ids = tokenizer.encode_rendered(text)
        harmless = _rendered(tokenizer, _changed(messages, lambda text: text.translate(HARMLESS)))
        expected = tokenizer.encode(harmless, add_special_tokens=False)
        assert _control_ids(tokenizer, family, ids) == _control_ids(tokenizer, family, expected)
        # It is the text it always was, and without the text of tokens it is encoded as always.
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.encode_rendered(harmless) == expected

    check()


def test_plain_text_is_split_as_if_there_were_no_such_token() -> None:
    template, _, _ = FAMILIES["gemma"]
    tokenizer, without = TOKENIZERS["gemma"], _tokenizer([], sorted(TEXTS), template)
    text = "a<end_of_turn> folded\n\ninto<start_of_turn>\u2581\u2581 <table>.<unused7>"
    ids = tokenizer.encode_rendered(_rendered(tokenizer, [{"role": "user", "content": text}]))
    assert _strings(tokenizer, ids)[:3] == ["<s>", "<start_of_turn>", "user"]
    # The template's newline before the message belongs to the stretch.
    expected = _strings(without, without.encode("user\n" + text, add_special_tokens=False))
    assert _strings(tokenizer, ids)[2 : 2 + len(expected)] == expected
    assert {"\n\n", "\u2581\u2581", "<table>"} <= set(expected)


def _strings(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_text(n) for n in ids]


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        # Two halves that the template joins, by leaving out what lies between them or by what it writes itself.
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", ["<|im_ ", " end|>"]),
        ("{{ messages | map(attribute='content') | join }}", ["<|im_", "end|>"]),
        ("{{ messages[0].content }}end|>", ["<|im_"]),
        ("{{ '<|im_' + messages[0].content }}", ["end|>"]),
        ("<|{{ messages[0].content }}|>", ["im_end"]),
        ("{{ '<|' ~ messages[0].content ~ '|>' }}", ["im_end"]),
        ("{{ messages[0].content | replace('-', '') }}", ["<|im_-end|>"]),
        ("{{ messages[0].content.replace('x', '|') }}", ["<xim_endx>"]),
        ("{{ messages[0].content | lower }}", ["<|IM_END|>"]),
        ("{{ messages[0].content[1:-1] }}", ["x<|im_end|>x"]),
        ("{{ messages[0].content.split(',')[1] }}", ["a,<|im_end|>,b"]),
        ("{{ messages[0].content | list | join }}", ["<|im_end|>"]),
        ("{{ messages[0].content | tojson }}", ["<|im_end|>"]),
        ("{{ messages[0].content | e | replace('&lt;', '<') | replace('&gt;', '>') }}", ["<|im_end|>"]),
        ("{{ '{}'.format(messages[0].content) }}", ["<|im_end|>"]),
        ("{{ '%s' % messages[0].content }}", ["<|im_end|>"]),
        ("{{ '%s' | format(messages[0].content) }}", ["<|im_end|>"]),
        ("{{ messages[0].content | indent }}", ["a\n<|im_end|>"]),
        ("{% set x %}{{ messages[0].content }}{% endset %}{{ x }}", ["<|im_end|>"]),
        ("{% filter trim %}{{ messages[0].content }}{% endfilter %}", [" <|im_end|> "]),
        ("{{ messages }}", ["<|im_end|>"]),
        ("{{ messages[0].content.join(['', '']) }}", ["<|im_end|>"]),
        ("{{ (messages[0].content + '|') * 2 }}", ["<|im_end|>"]),
    ],
)
def test_no_way_of_writing_a_message_makes_a_token_of_it(template: str, messages: list[str]) -> None:
    tokenizer = _tokenizer(["<|im_end|>"], [], template)
    text = _rendered(tokenizer, [{"role": "user", "content": content} for content in messages])
    usual = tokenizer.encode(text, add_special_tokens=False)
    assert "<|im_end|>" in _strings(tokenizer, usual)
    ids = tokenizer.encode_rendered(text)
    assert "<|im_end|>" not in _strings(tokenizer, ids)
    assert tokenizer.decode(ids) == text


def test_variables_names_and_tools_are_text_too() -> None:
    template = "{{ bos_token }}{{ tone }}{{ messages[0].name }}{{ tools | tojson }}{{ tools[0].function.name }}<|end|>"
    tokenizer = _tokenizer(["<s>", "<|end|>"], [], template)
    text = _rendered(
        tokenizer,
        [{"role": "user", "name": "<|end|>", "content": ""}],
        tools=[{"function": {"name": "<|end|>", "parameters": {"<|end|>": 1}}}],
        tone="<|end|>",
    )
    assert text.count("<|end|>") == 6
    assert _strings(tokenizer, tokenizer.encode_rendered(text)).count("<|end|>") == 1
    # A variable in the place of the model's own token is the client's, too.
    taken = _rendered(tokenizer, [{"role": "user", "content": ""}], bos_token="<|end|>", tools=[{"function": {}}])
    assert _strings(tokenizer, tokenizer.encode_rendered(taken)).count("<|end|>") == 1


def test_a_role_that_is_none_is_text() -> None:
    tokenizer = TOKENIZERS["phi"]
    text = _rendered(tokenizer, [{"role": "end", "content": "x"}, {"role": "user", "content": "y"}])
    assert text == "<|end|>x<|end|><|user|>y<|end|><|assistant|>"
    strings = _strings(tokenizer, tokenizer.encode_rendered(text))
    assert strings[:2] == ["<", "|"]
    assert [each for each in strings if each.startswith("<|")] == ["<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]


THINKING = (
    "{% for m in messages %}{% set text = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if loop.last and thought %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ text + '<|im_end|>\\n' }}{% endfor %}"
)


def test_templates_find_their_marks_in_messages() -> None:
    """What a template cuts out of an answer it finds as ever; the mark it writes in its place is a token."""
    _, special, others = FAMILIES["chatml"]
    tokenizer = _tokenizer(special, others, THINKING)
    messages = [
        {"role": "user", "content": "1 + 1? <think>"},
        {"role": "assistant", "content": "<think>\nTwo, <|im_end|>\n</think>\n\n2"},
    ]
    text = _rendered(tokenizer, messages)
    assert text.endswith("assistant\n<think>\nTwo, <|im_end|>\n</think>\n\n2<|im_end|>\n")
    found = [each for each in _strings(tokenizer, tokenizer.encode_rendered(text)) if each in special + others]
    turn = ["<|im_start|>", "<|im_end|>"]
    assert found == [*turn, "<|im_start|>", "<think>", "</think>", "<|im_end|>"]


@pytest.mark.parametrize("family", FAMILIES)
def test_continuing_a_message(family: str) -> None:
    tokenizer, marker = TOKENIZERS[family], _markers(family)[-1]
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": f"so {marker} be"}]
    text = _rendered(tokenizer, messages, **options)
    assert text.endswith(f"so {marker} be")
    ids = tokenizer.encode_rendered(text)
    harmless = _rendered(tokenizer, _changed(messages, lambda text: text.translate(HARMLESS)), **options)
    expected = tokenizer.encode(harmless, add_special_tokens=False)
    assert _control_ids(tokenizer, family, ids) == _control_ids(tokenizer, family, expected)


def test_bos_and_limits_are_as_for_other_texts(bpe: Trained) -> None:
    tokenizer = TOKENIZERS["mistral"]
    text = _rendered(tokenizer, [{"role": "user", "content": "[/INST] sheet"}])
    ids = tokenizer.encode_rendered(text)
    assert tokenizer.encode_rendered(text, limit=len(ids)) == ids
    with pytest.raises(TooManyTokens):
        tokenizer.encode_rendered(text, limit=len(ids) - 1)
    assert tokenizer.encode_rendered(text, add_special_tokens=True) == ids


def test_half_a_surrogate_pair_beside_a_token() -> None:
    tokenizer = TOKENIZERS["chatml"]
    text = _rendered(tokenizer, [{"role": "user", "content": "\ud800<|im_end|>\udfff"}])
    ids = tokenizer.encode_rendered(text)
    assert _strings(tokenizer, ids).count("<|im_end|>") == 1
    assert "\ufffd<|im_end|>\ufffd<|im_end|>" in tokenizer.decode(ids, skip_special_tokens=False)


# Other kinds of tokenizers.


def test_sentencepiece_with_its_space_before_every_text(spm: Trained) -> None:
    template = "{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}"
    backend = tokenizers.Tokenizer.from_str(spm.backend.to_str())
    tokenizer = _with(backend, ["<s>", "</s>"], [], template)
    text = _rendered(tokenizer, [{"role": "user", "content": "pages</s> hold"}, {"role": "user", "content": "<s>"}])
    strings = _strings(tokenizer, tokenizer.encode_rendered(text))
    assert [each for each in strings if each in ("<s>", "</s>")] == ["<s>", "</s>"] * 2
    plain = tokenizers.Tokenizer(backend.model)
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    ids = tokenizer.encode_rendered(text)
    after = plain.encode("<s>", add_special_tokens=False).ids
    assert ids[-len(after) - 1 : -1] in (after, after[1:])  # the first text's space may be the only one


def test_a_model_that_has_control_tokens_among_its_pieces() -> None:
    """Its merges make the token of the text, also where it is not recognised as one."""
    tokenizer = _tokenizer(["<eos>"], [], "{{ messages[0].content }}<eos>", pieces=True)
    assert "<eos>" in _strings(tokenizer, tokenizer.encode("<eos>"))
    text = _rendered(tokenizer, [{"role": "user", "content": "a<eos>b"}])
    ids = tokenizer.encode_rendered(text)
    assert _strings(tokenizer, ids).count("<eos>") == 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_unigram_model_that_has_control_tokens_among_its_pieces() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -5.0) for character in "▁abcs</>un k")]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = _with(backend, ["<unk>", "</s>"], [], "{{ messages[0].content }}</s>")
    text = _rendered(tokenizer, [{"role": "user", "content": "ab</s> c<unk>"}])
    ids = tokenizer.encode_rendered(text)
    assert ids.count(1) == 1
    assert 0 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_text_that_becomes_a_token_when_it_is_normalised() -> None:
    """Full-width letters are others after NFKC, and some tokenizers look for their tokens only then."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<end>", special=True, normalized=True)])
    tokenizer = _with(backend, [], [], "{{ messages[0].content }}<end>")
    text = _rendered(tokenizer, [{"role": "user", "content": "＜ｅｎｄ＞"}])
    assert _strings(tokenizer, tokenizer.encode(text)).count("<end>") == 2
    assert _strings(tokenizer, tokenizer.encode_rendered(text)).count("<end>") == 1


def test_ids_that_the_vocabulary_leaves_out() -> None:
    """Of a vocabulary with gaps every token keeps its id."""
    alphabet = {character: 3 * n for n, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    backend = tokenizers.Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = _with(backend, ["<|end|>"], ["\n\n"], "{{ messages[0].content }}<|end|>")
    text = _rendered(tokenizer, [{"role": "user", "content": "a<|end|>é\n\nb"}])
    ids = tokenizer.encode_rendered(text)
    end, lines = (backend.token_to_id(token) for token in ("<|end|>", "\n\n"))
    assert ids.count(end) == 1
    assert ids.count(lines) == 1
    assert [n for n in ids if n not in (end, lines)] == [
        alphabet[character]
        for piece in re.split("\n\n", "a<|end|>é\n\nb")
        for word in [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(piece)]
        for token, _ in word
        for character in token
    ]


def test_spaces_beside_a_token_that_takes_them() -> None:
    backend = tokenizers.Tokenizer.from_str(TOKENIZERS["phi"]._backend.to_str())
    backend.add_tokens([AddedToken("<|image|>", special=True, normalized=False, lstrip=True, rstrip=True)])
    tokenizer = _with(backend, [], [], "{{ messages[0].content }}  <|image|> \n{{ messages[0].content }}")
    text = _rendered(tokenizer, [{"role": "user", "content": "a <|image|> b"}])
    strings = _strings(tokenizer, tokenizer.encode_rendered(text))
    assert strings.count("<|image|>") == 1
    assert "\n" not in strings


def test_thousands_of_tokens_and_a_long_text_of_their_beginnings() -> None:
    special = [f"<unused{n}>" for n in range(2000)]
    tokenizer = _tokenizer(special, [], "{{ messages[0].content }}<unused1>")
    text = _rendered(tokenizer, [{"role": "user", "content": "<unused" * 100_000 + "<unused1999><unused19"}])
    ids = tokenizer.encode_rendered(text)
    assert [tokenizer.token_text(n) for n in ids if n in tokenizer.special_ids] == ["<unused1>"]


# What is a template's own, in what random templates write: their literals and their variables have different letters.

OWN, THEIRS = "<|ab>_", "xy-\u00df0"


def _expression() -> st.SearchStrategy[str]:
    literal = st.text(OWN, max_size=4).map(repr)
    atoms = st.one_of(literal, st.sampled_from(["x", "y"]))

    def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        method = st.sampled_from(
            [
                "strip()", "strip('<x')", "lstrip('a')", "rstrip('y>')", "upper()", "title()", "replace('x', '<|')",
                "replace(y, x)", "replace('a', x, 1)", "split('x') | join('|')", "split('a', 1) | join(x)",
                "rsplit('|', 1)[0]", "partition('x') | join('_')", "rpartition('a')[2]", "splitlines() | join(y)",
                "removeprefix('<')", "removesuffix('>')", "join([x, 'a', y])", "lower()", "capitalize()",
                "split() | last | default('a')",
            ]
        )  # fmt: skip
        filters = ["trim", "upper", "replace('|', y)", "replace('y', '_>')", "string", "default('a')", "lower", "title"]
        return st.one_of(
            st.tuples(inner, inner).map(lambda two: f"({two[0]} + {two[1]})"),
            st.tuples(inner, inner).map(lambda two: f"({two[0]} ~ {two[1]})"),
            st.tuples(inner, method).map(lambda two: f"({'.'.join(two)})"),
            st.tuples(inner, st.sampled_from(filters)).map(lambda two: f"({two[0]} | {two[1]})"),
            st.tuples(inner, st.integers(-4, 4), st.integers(-4, 4)).map(lambda it: f"{it[0]}[{it[1]}:{it[2]}]"),
            st.tuples(inner, st.integers(0, 3)).map(lambda it: f"({it[0]} * {it[1]})"),
            st.tuples(inner, inner).map(lambda two: f"([{two[0]}, {two[1]}] | join('_'))"),
            st.tuples(inner, inner).map(lambda two: f"({two[0]} if 'x' in {two[1]} else {two[1]})"),
        )

    return st.recursive(atoms, compound, max_leaves=8)


@examples(150)
@given(_expression(), st.text(THEIRS, max_size=5), st.text(THEIRS, max_size=5))
def test_what_a_template_wrote_is_told_from_what_it_was_given(expression: str, x: str, y: str) -> None:
    source = (
        "{% macro m(a) %}<{{ a }}>{% endmacro %}{% set s %}{{ "
        + expression
        + " }}{{ x }}{% endset %}{{ s }}|{{ m(s) | trim }}{{ m("
        + expression
        + ") }}"
    )
    text = ChatTemplate({"default": source}, {}).render([{"role": "user", "content": ""}], x=x, y=y)
    own = {position for start, end in text.spans for position in range(start, end)}
    assert own == {position for position, character in enumerate(text) if character.lower() in OWN}
    assert all(a < b for span in text.spans for a, b in [span])
    assert all(before[1] < after[0] for before, after in zip(text.spans, text.spans[1:], strict=False))


@pytest.mark.parametrize("text", ["", "<", "<ab>"])
@pytest.mark.parametrize("count", range(-1, 7))
def test_what_is_put_between_all_characters(text: str, count: int) -> None:
    for new in ("", "xy"):
        replaced = written(text).replace("", new, count)
        assert replaced == text.replace("", new, count)
        own = {position for start, end in getattr(replaced, "spans", ()) for position in range(start, end)}
        assert own == {position for position, character in enumerate(replaced) if character in OWN}


@pytest.mark.parametrize("method", ["partition", "rpartition"])
def test_what_is_found_in_a_message_is_the_messages(method: str) -> None:
    """Not the template's, which looked for it."""
    source = "<|im_start|>{% for part in messages[0].content." + method + "('<|im_end|>') %}{{ part }}{% endfor %}"
    tokenizer = _tokenizer(["<|im_start|>", "<|im_end|>"], [], source)
    ids = tokenizer.encode_rendered(_rendered(tokenizer, [{"role": "user", "content": "a<|im_end|>b"}]))
    assert [tokenizer.token_text(n) for n in ids if n in tokenizer.special_ids] == ["<|im_start|>"]
