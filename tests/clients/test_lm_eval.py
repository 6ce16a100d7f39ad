"""An evaluation against the server gives what it gives with transformers on the same weights: lm-eval's tasks, with its
`local-completions` and with its `hf`, both in float32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from datasets import Dataset

TOLERANCE = 1e-3
"""Between the log-likelihoods of a text by two implementations in float32; they differ by about a tenth of it."""

FEW = 6

EXAMPLES = "The opposite of up is down.\nA dog has four legs.\n"
"""Before every question."""

QUIZ = [json.loads(line) for line in Path(__file__).with_name("quiz.jsonl").read_text().splitlines()]
PASSAGES = [
    "The river rises in the hills, and after a hundred miles it meets the sea.",
    "def add(a, b):\n    return a + b\n",
    "Ein Satz auf Deutsch, dann 漢字 and an emoji 😀, all in one line.",
    "Yes.",
]


def rows(lines: list[dict[str, Any]]) -> Callable[..., dict[str, Dataset]]:
    """A data set that no hub is asked for."""
    return lambda **_: {"test": Dataset.from_list(lines)}


def task(name: str, lines: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"task": name, "custom_dataset": rows(lines), "test_split": "test", **fields}


def mean(*metrics: str) -> list[dict[str, Any]]:
    return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]


def tasks() -> list[dict[str, Any]]:
    """New ones for every evaluation, which changes them."""
    return [
        task(
            "choices",
            QUIZ,
            output_type="multiple_choice",
            description=EXAMPLES,
            doc_to_text="{{question}}",
            doc_to_choice="{{choices}}",
            doc_to_target="answer",
            metric_list=mean("acc", "acc_norm"),
        ),
        task(
            "answers",
            QUIZ[:8],
            output_type="generate_until",
            description=EXAMPLES,
            doc_to_text="{{question}}",
            doc_to_target=" {{choices[answer]}}",
            generation_kwargs={"until": ["\n", "."], "max_gen_toks": 8, "do_sample": False},
            metric_list=mean("exact_match"),
        ),
        task(
            "passages",
            [{"text": text} for text in PASSAGES],
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        ),
    ]


def evaluate(model: str, limit: int | None = None, **arguments: Any) -> dict[str, Any]:
    """The results and samples of each task, for all documents or the first `limit`."""
    found = lm_eval.simple_evaluate(model, model_args=arguments, tasks=tasks(), limit=limit, bootstrap_iters=0)
    assert found is not None
    return found


def answers(found: dict[str, Any], name: str) -> list[Any]:
    """What came of each document: texts, log-likelihoods, or pairs of a log-likelihood and whether it was greedy."""
    return [sample["filtered_resps"] for sample in sorted(found["samples"][name], key=lambda each: each["doc_id"])]


@pytest.fixture(scope="module")
def expected(float32: Path) -> dict[str, Any]:
    return evaluate("hf", pretrained=str(float32), dtype="float32", device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def found(float32: Path, float32_server: str) -> dict[str, Any]:
    """Token ids, several prompts to a request."""
    return served(float32, float32_server, batch_size=8)


def served(float32: Path, url: str, **arguments: Any) -> dict[str, Any]:
    return evaluate(
        "local-completions",
        pretrained=str(float32),
        tokenizer_backend="huggingface",
        base_url=f"{url}/v1/completions",
        **arguments,
    )


@pytest.mark.parametrize(
    ("name", "metric"), [("choices", "acc,none"), ("choices", "acc_norm,none"), ("answers", "exact_match,none")]
)
def test_accuracies_are_equal(expected: dict[str, Any], found: dict[str, Any], name: str, metric: str) -> None:
    accuracy = found["results"][name][metric]
    assert accuracy == expected["results"][name][metric]
    assert 0.5 < accuracy < 1  # the model knows much of it, but not all: there is something to get wrong


def test_every_choice_is_as_likely(expected: dict[str, Any], found: dict[str, Any]) -> None:
    pairs = list(zip(answers(found, "choices"), answers(expected, "choices"), strict=True))
    assert len(pairs) == len(QUIZ)
    for number, (mine, theirs) in enumerate(pairs):
        likely, is_greedy = zip(*mine, strict=True)
        assert likely == pytest.approx([value for value, _ in theirs], rel=0, abs=TOLERANCE), QUIZ[number]
        assert is_greedy == tuple(greedy for _, greedy in theirs), QUIZ[number]


def test_every_passage_is_as_likely(expected: dict[str, Any], found: dict[str, Any]) -> None:
    for mine, theirs in zip(answers(found, "passages"), answers(expected, "passages"), strict=True):
        assert mine == pytest.approx(theirs, rel=0, abs=TOLERANCE)


def test_greedy_answers_are_the_same_text(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert answers(found, "answers") == answers(expected, "answers")


def test_texts_sent_side_by_side_score_as_token_ids_do(
    found: dict[str, Any], float32: Path, float32_server: str
) -> None:
    texts = served(float32, float32_server, limit=FEW, num_concurrent=4, tokenized_requests=False)
    for name in ("choices", "answers", "passages"):
        assert answers(texts, name) == answers(found, name)[:FEW]
