"""A step on its way through the engine: what was planned, and what came of it."""

from array import array
from dataclasses import dataclass, field

from octavo.backends.protocol import NOT_FINITE, NOTHING_ALLOWED, SAMPLE, Batch, Int32, StepResult
from octavo.engine.request import PromptLogprobs, TokenLogprobs


@dataclass(slots=True)
class Step:
    """What a step computes: table row `rows[i]` its next `counts[i]` tokens, after copying pages.

    A plan reserves pages and moves nothing. It may be computed again, whole or in parts, until it is committed.

    Attributes:
        rows: Int32[S], ascending. counts: Int32[S].
        departures: sequences that had left the table by then (see `SequenceTable.departures`).
        copies: table row -> (source page, destination page).
        committed: it took effect; it does so once.
    """

    rows: Int32
    counts: Int32
    departures: int
    copies: dict[int, tuple[int, int]]
    committed: bool = False

    def part(self, places: list[int]) -> "Step":
        """What it computes in some places."""
        rows = self.rows[places]
        copies = {row: self.copies[row] for row in rows.tolist() if row in self.copies}
        return Step(rows, self.counts[places], self.departures, copies)


@dataclass(slots=True)
class Accepted:
    """What a step brings its sequences, by their place in the step.

    Attributes:
        tokens: for every sequence its new tokens in order: none in the middle of a prompt, one when it was drawn,
            several when drafts were right or a grammar allows nothing else.
        logprobs: one entry per new token of the sequences that asked for them.
        prompt_logprobs: one entry per prompt token that was scored.
        failures: why a sequence cannot go on, in one line.
        undrawable: the position for which a sequence's own bans and constraints leave no token to draw.
    """

    tokens: list[list[int]]
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[int, PromptLogprobs] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    undrawable: dict[int, int] = field(default_factory=dict)


def accept(batch: Batch, places: Int32, result: StepResult) -> Accepted:
    """Give every row of a result to its sequence.

    Args:
        batch: what was computed. places: Int32[L], the place in the step of each row of logits.
    """
    logits = batch.logits
    tokens, scored = result.tokens.tolist(), (logits.num_logprobs >= 0).nonzero()[0].tolist()
    if len(tokens) == len(batch.tokens) and not scored and min(tokens) >= 0:  # decoding: a token of every sequence
        return Accepted([[token] for token in tokens])
    accepted = Accepted([[] for _ in batch.table_rows])
    for row, (place, token, target) in enumerate(zip(places.tolist(), tokens, logits.targets.tolist(), strict=True)):
        if token == NOTHING_ALLOWED:
            accepted.undrawable[place] = int(logits.positions[row])
        elif token == NOT_FINITE:
            accepted.failures[place] = _NOT_FINITE.format(position=int(logits.positions[row]))
        elif target == SAMPLE:
            accepted.tokens[place].append(token)
    prompt_rows: dict[int, list[int]] = {}
    for row in scored:
        if tokens[row] < 0:
            continue
        place = int(places[row])
        if logits.targets[row] == SAMPLE:
            accepted.logprobs.setdefault(place, []).append(_logprobs(result, row, int(logits.num_logprobs[row])))
        else:
            prompt_rows.setdefault(place, []).append(row)
    for place, rows in prompt_rows.items():
        accepted.prompt_logprobs[place] = _prompt_logprobs(result, rows, int(logits.num_logprobs[rows[0]]))
    return accepted


_NOT_FINITE = (
    "the model's logits for position {position} are not finite, so that no token can be drawn; "
    "its weights are damaged, or this prompt is beyond what they can compute"
)


def _logprobs(result: StepResult, row: int, count: int) -> TokenLogprobs:
    return TokenLogprobs(
        float(result.logprobs[row]), result.top_tokens[row, :count].tolist(), result.top_logprobs[row, :count].tolist()
    )


def _prompt_logprobs(result: StepResult, rows: list[int], count: int) -> PromptLogprobs:
    return PromptLogprobs(
        array("f", result.logprobs[rows].tobytes()),
        array("i", result.top_tokens[rows, :count].tobytes()),
        array("f", result.top_logprobs[rows, :count].tobytes()),
    )
