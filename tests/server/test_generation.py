"""Tokens to text, against the tokenizer's own decoding of everything at once."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from octavo.deployments.choice import Choice, Delta, Prompt, TextOptions, join
from octavo.engine.request import FinishReason, Output, TokenLogprobs
from octavo.text import Detokenizer, Tokenizer
from tests.server.fake import CORPUS

TEXTS = st.lists(st.sampled_from([*"".join(CORPUS), " Paris", " 😀", "\n", "<|im_end|>", "�"]), max_size=12).map(
    "".join
)


def run(choice: Choice, ids: list[int], cuts: list[int], reason: FinishReason, logprobs: bool = False) -> list[Delta]:
    """Feed a choice its tokens, several per step as `cuts` says, until it has ended."""
    deltas: list[Delta] = []
    position, sizes = 0, iter(cuts)
    while position < len(ids) and not choice.finished:
        size = min(next(sizes, 1), len(ids) - position)
        new = ids[position : position + size]
        position += size
        scores = [TokenLogprobs(-float(token), [], []) for token in new] if logprobs else None
        finish = reason if position == len(ids) else None
        deltas.append(choice.push(Output(request_id="r", token_ids=new, logprobs=scores, finish_reason=finish)))
    return deltas


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The text up to the stop string that is complete first, the longest of those; by trying every end."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return (text[:end] if include else text[: end - len(longest)]), longest
    return text, None


@st.composite
def scripts(draw: st.DrawFn, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[str]]:
    ids = tokenizer.encode(draw(TEXTS))
    ids += draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4))  # half characters, special tokens
    text = tokenizer.decode(ids)
    stops = draw(st.lists(st.one_of(st.text(min_size=1, max_size=3), pieces_of(text)), max_size=4))
    return ids or [5], draw(st.lists(st.integers(1, 5), max_size=10)), stops


def pieces_of(text: str) -> st.SearchStrategy[str]:
    pairs = st.tuples(st.integers(0, len(text)), st.integers(1, 6))
    return pairs.map(lambda pair: text[pair[0] : sum(pair)]).filter(bool) if text else st.just("zz")


@given(data=st.data(), include=st.booleans(), skip_special=st.booleans())
def test_any_cut_and_any_stop(tokenizer: Tokenizer, data: st.DataObject, include: bool, skip_special: bool) -> None:
    ids, cuts, stops = data.draw(scripts(tokenizer))
    options = TextOptions(stop=tuple(stops), include_stop=include, skip_special_tokens=skip_special)
    choice = Choice(0, tokenizer, Prompt([7]), options)
    whole = join(run(choice, ids, cuts, FinishReason.LENGTH, logprobs=True))
    text, stop = expected(tokenizer.decode(ids, skip_special_tokens=skip_special), stops, include)
    assert (whole.text, whole.finish.stop) == (text, stop)
    assert whole.finish.reason == ("length" if stop is None else "stop")
    # No token is lost, and none counts that came after the stop string.
    assert whole.token_ids == ids[: len(whole.token_ids)]
    assert len(whole.token_ids) == choice.tokens
    assert [score.token_id for score in whole.scores or ()] == whole.token_ids
    if stop is None:
        assert whole.token_ids == ids


def expected_after(
    tokenizer: Tokenizer, ids: list[int], stops: list[str], min_tokens: int, include: bool
) -> tuple[str, str | None]:
    """By trying every end: the stop string that is completed first by a token after the first `min_tokens`."""
    texts = [Detokenizer(tokenizer, [7]) for _ in range(len(ids) + 1)]
    grown = ["".join(map(text.push, ids[:count])) for count, text in enumerate(texts)]
    grown[-1] += texts[-1].flush()
    whole, begin = grown[-1], len(grown[min(min_tokens, len(ids))])
    if min_tokens >= len(ids):
        begin = len(whole)
    for end in range(begin + 1, len(whole) + 1):
        ending = [stop for stop in stops if whole[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return (whole[:end] if include else whole[: end - len(longest)]), longest
    return whole, None


@given(data=st.data(), min_tokens=st.integers(0, 8), include=st.booleans())
def test_stop_strings_across_the_minimum(
    tokenizer: Tokenizer, data: st.DataObject, min_tokens: int, include: bool
) -> None:
    """Matched when it is completed after the minimum, wherever it begins."""
    ids, cuts, stops = data.draw(scripts(tokenizer))
    options = TextOptions(stop=tuple(stops), min_tokens=min_tokens, include_stop=include)
    whole = join(run(Choice(0, tokenizer, Prompt([7]), options), ids, cuts, FinishReason.LENGTH))
    assert (whole.text, whole.finish.stop) == expected_after(tokenizer, ids, stops, min_tokens, include)


@given(data=st.data(), min_tokens=st.integers(0, 5))
def test_cuts_make_no_difference(tokenizer: Tokenizer, data: st.DataObject, min_tokens: int) -> None:
    ids, cuts, stops = data.draw(scripts(tokenizer))
    options = TextOptions(stop=tuple(stops), min_tokens=min_tokens)
    singly, cut = (
        join(run(Choice(0, tokenizer, Prompt([7]), options), ids, sizes, FinishReason.LENGTH, logprobs=True))
        for sizes in ([], cuts)
    )
    assert singly == cut


@given(data=st.data(), include=st.booleans())
def test_end_of_turn_is_no_text(tokenizer: Tokenizer, data: st.DataObject, include: bool) -> None:
    ids, cuts, _ = data.draw(scripts(tokenizer))
    options = TextOptions(
        skip_special_tokens=False, include_stop=include, stop_token_ids=frozenset([2]), end_token_ids=frozenset([2])
    )
    whole = join(run(Choice(0, tokenizer, Prompt([7]), options), [*ids, 2], cuts, FinishReason.STOP))
    assert whole.text == tokenizer.decode([*ids, 2] if include else ids, skip_special_tokens=False)
    assert (whole.finish.reason, whole.finish.stop) == ("stop", 2)
    assert whole.token_ids == [*ids, 2]


def test_min_tokens_puts_off_stop_strings(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a b a b a b")
    whole = join(
        run(Choice(0, tokenizer, Prompt([7]), TextOptions(stop=("b",), min_tokens=4)), ids, [], FinishReason.LENGTH)
    )
    assert whole.text.startswith("a b a")
    assert whole.finish.reason == "stop"
    assert len(whole.token_ids) > 4


def test_scores_come_with_their_step_even_if_their_text_waits(tokenizer: Tokenizer) -> None:
    choice = Choice(0, tokenizer, Prompt([7]), TextOptions(stop=("Paris!",)))
    deltas = run(choice, tokenizer.encode("Paris?"), [], FinishReason.LENGTH, logprobs=True)
    assert deltas[0].text == ""
    assert all(delta.scores and len(delta.scores) == 1 for delta in deltas)
    assert join(deltas).text == "Paris?"


def test_echo(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("où")
    choice = Choice(3, tokenizer, Prompt(array("i", ids)), TextOptions(echo=True))
    scores = [TokenLogprobs(-1.0, [], [])] * (len(ids) - 1)
    [begun] = choice.begin(scores)
    assert (begun.index, begun.text) == (3, "où")
    assert [score.token_id for score in begun.scores or ()] == ids
    assert begun.scores is not None
    assert begun.scores[0].logprobs is None
    more = choice.push(Output(request_id="r", token_ids=tokenizer.encode("!"), logprobs=[TokenLogprobs(-2.0, [], [])]))
    assert more.scores is not None
    assert more.scores[0].offset == 2
