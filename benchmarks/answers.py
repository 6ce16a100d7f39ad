"""Greedy answers to short questions, by the native kernels and by the float32 reference backend, compared.

A model's answer follows from every prediction before it: one other token, and all that comes after is another text. So
answers show what mean divergences (`quality.py` without `--answers`) hide: how often a user reads something else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.engine.config import EngineConfig
from octavo.engine.loader import load_engine
from octavo.engine.request import Request, SamplingParams
from octavo.errors import ConfigError
from octavo.text.tokenizer import Tokenizer

QUESTIONS = Path(__file__).resolve().parent / "questions.txt"

ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What both backends answer to a question: text, and after how many tokens they part, None if they do not."""

    kind: str
    question: str
    reference: str
    cpu: str
    parts_at: int | None


def read_questions(path: Path = QUESTIONS) -> list[Question]:
    """One a line; a line that begins with # names the kind of those after it."""
    kind, questions = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            kind = line.removeprefix("#").strip()
        elif line.strip():
            questions.append(Question(kind, line.strip()))
    return questions


def generate(config: EngineConfig, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[list[int]]:
    """The first tokens of the greedy answer to each question, asked by itself in a chat.

    Raises:
        ConfigError: a model without a chat template.
    """
    if tokenizer.chat_template is None:
        raise ConfigError("the model has no chat template: there is nothing to ask it")
    engine = load_engine(config).engine
    params = SamplingParams(
        max_tokens=ANSWER_TOKENS, temperature=0.0, stop_token_ids=tuple(sorted(tokenizer.stop_token_ids))
    )
    for index, question in enumerate(questions):
        text = tokenizer.chat_template.render([{"role": "user", "content": question.text}])
        prompt = tokenizer.encode(text, add_special_tokens=False)
        engine.add(Request(request_id=str(index), prompt_token_ids=prompt, params=params))
    answers: list[list[int]] = [[] for _ in questions]
    while engine.has_work:
        for output in engine.step():
            answers[int(output.request_id)] += output.token_ids
    return answers


def compare(
    tokenizer: Tokenizer, questions: Sequence[Question], reference: list[list[int]], cpu: list[list[int]]
) -> list[Answer]:
    """The answers side by side."""
    return [
        Answer(question.kind, question.text, tokenizer.decode(theirs), tokenizer.decode(ours), _parting(theirs, ours))
        for question, theirs, ours in zip(questions, reference, cpu, strict=True)
    ]


def _parting(theirs: list[int], ours: list[int]) -> int | None:
    if theirs == ours:
        return None
    return next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
