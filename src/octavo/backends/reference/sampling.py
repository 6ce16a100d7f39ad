"""Sampling, plain and exact: what every other backend's sampler is held against.

The order is: penalties, biases, mask, temperature, min_p, top_k, top_p, typical_p. One uniform number per token, from a
counter-based generator keyed by (seed, position), is turned into a token through the inverse of the cumulative
distribution in order of token ids. So a token depends on its own row, seed and position alone.
"""

import numpy as np
from numpy.typing import NDArray

from octavo.backends.protocol import (
    NOT_FINITE,
    NOTHING_ALLOWED,
    SAMPLE,
    Bool,
    Float32,
    Int32,
    LogitRows,
    StepResult,
    UInt32,
)

Float64 = NDArray[np.float64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(seeds: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        seeds: UInt64[n], the 64-bit key of each row.
        counters: UInt64[n], the low half of each row's 128-bit counter; the high half is 0.

    Returns:
        UInt64[n, 4], four 32-bit words per row.
    """
    key = [seeds & _LOW, seeds >> _HALF]
    word = [counters & _LOW, counters >> _HALF, np.zeros_like(counters), np.zeros_like(counters)]
    for _ in range(10):
        product = [_MULTIPLIERS[0] * word[0], _MULTIPLIERS[1] * word[2]]
        word = [
            (product[1] >> _HALF) ^ word[1] ^ key[0],
            product[1] & _LOW,
            (product[0] >> _HALF) ^ word[3] ^ key[1],
            product[0] & _LOW,
        ]
        key = [(key[half] + np.uint64(_WEYL[half])) & _LOW for half in range(2)]
    return np.stack(word, axis=-1)


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> Float64:
    """One number in [0, 1) with 53 random bits per (seed, position)."""
    words = philox(seeds, positions.astype(np.uint64))
    bits = ((words[:, 0] << _HALF) | words[:, 1]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def sample(logits: Float32, rows: LogitRows) -> StepResult:
    """Draw a token, or score the target, for every row.

    Args:
        logits: Float32[L, V], left unchanged.
        rows: what to do with each row.
    """
    tokens = rows.targets.copy()
    numbers = uniform(rows.seeds, rows.positions)
    for row in np.flatnonzero((tokens == SAMPLE) | (rows.num_logprobs >= 0)).tolist():
        if not np.isfinite(logits[row].max()):
            tokens[row] = NOT_FINITE
        elif tokens[row] == SAMPLE:
            tokens[row] = _choose(adjust(logits[row], rows, row), rows, row, float(numbers[row]))
    return _with_logprobs(logits, tokens, rows.num_logprobs)


def adjust(logits: Float32, rows: LogitRows, row: int) -> Float32:
    """One row of logits, Float32[V], with its penalties, biases and mask applied."""
    logits = logits.copy()
    if rows.penalties is not None:
        penalties = rows.penalties
        own = slice(penalties.starts[row], penalties.starts[row + 1])
        ids, counts = penalties.ids[own], penalties.counts[own]
        values, factor = logits[ids], penalties.repetition[row]
        if factor != 1.0:
            values = np.where(values > 0, values / factor, values * factor)
        values -= penalties.frequency[row] * counts.astype(np.float32)
        logits[ids] = values - penalties.presence[row] * (counts > 0).astype(np.float32)
    if rows.biases is not None:
        own = slice(rows.biases.starts[row], rows.biases.starts[row + 1])
        logits[rows.biases.ids[own]] += rows.biases.values[own]
    if rows.masks is not None and rows.mask_of_row is not None and rows.mask_of_row[row] >= 0:
        logits[~allowed(rows.masks[rows.mask_of_row[row]], len(logits))] = -np.inf
    return logits


def allowed(mask: UInt32, vocab_size: int) -> Bool:
    """Bool[V] from a mask's bits, UInt32[ceil(V / 32)]."""
    bits = np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little", count=vocab_size)
    return bits.astype(np.bool_)


def _choose(logits: Float32, rows: LogitRows, row: int, number: float) -> int:
    """The token drawn from a row's adjusted logits, or why there is none."""
    highest = logits.max()
    if highest == -np.inf:
        return NOTHING_ALLOWED
    if not np.isfinite(highest):
        return NOT_FINITE
    if rows.temperature[row] == 0.0:
        return int(np.argmax(logits))
    ids, weights = _distribution(
        logits,
        temperature=float(rows.temperature[row]),
        top_k=int(rows.top_k[row]),
        top_p=float(rows.top_p[row]),
        typical_p=float(rows.typical_p[row]),
        min_p=float(rows.min_p[row]),
    )
    return _draw(ids, weights, number) if len(ids) else NOTHING_ALLOWED


def _distribution(
    logits: Float32, *, temperature: float, top_k: int, top_p: float, typical_p: float, min_p: float
) -> tuple[NDArray[np.intp], Float64]:
    """The tokens that may be drawn, in order of id, and their weights (not normalised)."""
    scaled = (logits.astype(np.float64) - float(logits.max())) / temperature
    weights = np.exp(scaled)
    ids = np.flatnonzero(weights >= min_p) if min_p > 0.0 else np.arange(len(weights))
    if 0 < top_k < len(ids):
        # A stable sort keeps the lower id among equals, so that exactly k tokens stay.
        threshold = np.partition(weights[ids], len(ids) - top_k)[len(ids) - top_k]
        ids = ids[weights[ids] >= threshold]
        best = np.argsort(-weights[ids], kind="stable")[:top_k]
        ids = np.sort(ids[best])
    if top_p < 1.0:
        total = float(weights[ids].sum())
        # Tokens below (1 - p) / n of the mass cannot reach the nucleus: all together they weigh less than 1 - p.
        heavy = ids[weights[ids] >= total * (1.0 - top_p) / len(ids)]
        order = heavy[np.argsort(-weights[heavy], kind="stable")]
        before = np.cumsum(weights[order]) - weights[order]
        # The most probable token is always in the nucleus, also of a top_p that is 0 in float32.
        ids = np.sort(order[: max(int(np.count_nonzero(before < top_p * total)), 1)])
    if typical_p < 1.0:
        ids = _typical(ids, weights[ids], scaled[ids], typical_p)
    return ids, weights[ids]


def _typical(ids: NDArray[np.intp], weights: Float64, scaled: Float64, mass: float) -> NDArray[np.intp]:
    """Those tokens, of `mass` or just more together, whose surprise is nearest to the expected one (Meister et al.,
    "Locally typical sampling", 2023). Surprise and logit differ by a constant, so that the logits do as well."""
    possible = weights > 0
    ids, weights, scaled = ids[possible], weights[possible], scaled[possible]
    total = float(weights.sum())
    order = np.argsort(np.abs(scaled - float((weights * scaled).sum()) / total), kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    return np.sort(ids[order[: max(int(np.count_nonzero(before < mass * total)), 1)]])


def _draw(ids: NDArray[np.intp], weights: Float64, number: float) -> int:
    """The token at which the cumulative distribution passes `number` in [0, 1)."""
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    if index == len(ids):  # by rounding: the last one that weighs anything
        index = int(np.flatnonzero(weights)[-1])
    return int(ids[index])


def _with_logprobs(logits: Float32, tokens: Int32, num_logprobs: Int32) -> StepResult:
    """Add the log-probabilities that were asked for; rows that asked for fewer than K have -1 in the rest."""
    wanted = np.flatnonzero((num_logprobs >= 0) & (tokens >= 0))
    width = max(int(num_logprobs.max(initial=0)), 0)
    logprobs = np.full(len(tokens), np.nan, np.float32)
    top_tokens = np.full((len(tokens), width), -1, np.int32)
    top_logprobs = np.full((len(tokens), width), -np.inf, np.float32)
    for row in wanted:
        values, count = logits[row], int(num_logprobs[row])
        highest = float(values.max())
        normaliser = highest + float(np.log(np.exp(values - np.float32(highest)).sum(dtype=np.float64)))
        logprobs[row] = float(values[tokens[row]]) - normaliser
        if count:
            threshold = np.partition(values, len(values) - count)[len(values) - count]
            candidates = np.flatnonzero(values >= threshold)
            best = candidates[np.argsort(-values[candidates], kind="stable")[:count]]
            top_tokens[row, :count] = best
            top_logprobs[row, :count] = values[best].astype(np.float64) - normaliser
    return StepResult(tokens, logprobs, top_tokens, top_logprobs)
