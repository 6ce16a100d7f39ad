"""What is measured: the work a system is given, and the figures read off it. Imports the standard library alone."""

import re
from dataclasses import dataclass

DEFAULT_NUMBERS = {"offline": 32, "decode": 32, "prefill": 512, "stream": 128}
"""The kinds of workload, and the number each stands for when none is written."""

STREAM_PROMPT = 128
"""Prompt tokens before the one stream whose decoding is measured."""


@dataclass(frozen=True, slots=True)
class Work:
    """So many random prompts, all there at the start, and how many tokens to generate after each."""

    streams: int
    prompt_len: int
    output_len: int

    @property
    def length(self) -> int:
        """Tokens of a finished sequence."""
        return self.prompt_len + self.output_len


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one run of a work took.

    Attributes:
        seconds: all of it.
        prefill_seconds: from the start until every prompt has its first token.
        decode_seconds, decode_tokens: of the steps in which every prompt got one token after its first.
    """

    seconds: float
    prefill_seconds: float
    decode_seconds: float
    decode_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A line of the table: a figure, and the work it is read off. Workloads of equal work share its runs."""

    name: str
    kind: str
    work: Work

    def tokens_per_second(self, timing: Timing) -> float | None:
        """The figure; None where no step decoded all streams at once."""
        work = self.work
        if self.kind == "offline":
            return work.streams * work.length / timing.seconds
        if self.kind == "prefill":
            return work.streams * work.prompt_len / timing.prefill_seconds
        return timing.decode_tokens / timing.decode_seconds if timing.decode_tokens else None


def parse_workload(text: str, prompt_len: int, output_len: int) -> Workload:
    """Read a kind and its number, such as `offline32`.

    Args:
        prompt_len, output_len: what `offline` and `decode` take for each request.

    Raises:
        ValueError: no such kind, or a number below 1.
    """
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)?", text)
    if match is None or match[1] not in DEFAULT_NUMBERS:
        raise ValueError(f"workload {text!r} is not one of {', '.join(DEFAULT_NUMBERS)} with a number after it")
    kind = match[1]
    number = int(match[2] or DEFAULT_NUMBERS[kind])
    work = {
        "offline": Work(number, prompt_len, output_len),
        "decode": Work(number, prompt_len, output_len),
        "prefill": Work(1, number, 1),
        # The first token belongs to the prefill.
        "stream": Work(1, STREAM_PROMPT, number + 1),
    }[kind]
    return Workload(f"{kind}{number}", kind, work)
