"""Log-probabilities in the shapes of OpenAI's two APIs and of vLLM's `prompt_logprobs`."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import orjson

from octavo.deployments.choice import Score
from octavo.engine.request import TokenLogprobs
from octavo.server.dialects.chunks import listed
from octavo.text import Tokenizer

FLOOR = -9999.0
"""What stands for minus infinity, which JSON does not have."""

PIECE = 64
"""Positions that are written at a time: with twenty alternatives each they take two milliseconds."""

T = TypeVar("T")


class LogprobFormat:
    """Writes tokens with their log-probabilities.

    Args:
        top: how many of the most probable tokens are listed per position.
        as_ids: tokens appear as `token_id:N`, which tells apart those that decode to the same text.
    """

    def __init__(self, tokenizer: Tokenizer, top: int, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._as_ids = as_ids

    def chat(self, scores: Sequence[Score]) -> list[dict[str, Any]]:
        """`content` of a chat choice's `logprobs`."""
        content = []
        for score in scores:
            assert score.logprobs is not None  # only the first token of a prompt has none
            tops = self._tops(score.logprobs)
            content.append(
                {
                    **self._entry(score.token_id, score.logprobs.logprob),
                    "top_logprobs": [self._entry(token, logprob) for token, logprob in tops],
                }
            )
        return content

    def chat_pieces(self, scores: Sequence[Score]) -> Iterator[bytes]:
        """`logprobs` of a chat choice, in pieces."""
        yield b'{"content":'
        yield from listed(map(self.chat, _slices(scores)))
        yield b',"refusal":null}'

    def completion(self, scores: Sequence[Score]) -> dict[str, list[Any]]:
        """`logprobs` of a text choice. The token itself is always among its position's top ones."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, offset, logprobs in scores:
            token = self._text(token_id)
            tokens.append(token)
            offsets.append(offset)
            if logprobs is None:
                values.append(None)
                tops.append(None)
                continue
            values.append(_finite(logprobs.logprob))
            top: dict[str, float] = {}
            for other, logprob in self._tops(logprobs):
                top.setdefault(self._text(other), _finite(logprob))  # of equal texts the most probable counts
            top[token] = _finite(logprobs.logprob)
            tops.append(top)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def completion_pieces(self, scores: Sequence[Score]) -> Iterator[bytes]:
        """`logprobs` of a text choice. Its lists lie side by side, so that nothing can be sent before all is written:
        the first pieces are empty."""
        columns: dict[str, list[bytes]] = {name: [] for name in self.completion([])}
        for part in _slices(scores):
            for name, values in self.completion(part).items():
                columns[name].append(orjson.dumps(values)[1:-1])
            yield b""
        yield b"{%b}" % b",".join([b'"%b":[%b]' % (name.encode(), b",".join(parts)) for name, parts in columns.items()])

    def prompt_pieces(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Iterator[bytes]:
        """vLLM's `prompt_logprobs`: token id -> value per position, none for the first. The rank of a token that is
        not among the listed ones is not known."""
        parts = zip(_slices(token_ids[1:]), _slices(logprobs), strict=True)
        yield from listed(chain([[None]], (list(map(self._position, *part)) for part in parts)))

    def _position(self, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
        known = {str(token_id): self._ranked(token_id, logprobs.logprob, None)}
        for rank, (token, logprob) in enumerate(self._tops(logprobs), 1):
            known[str(token)] = self._ranked(token, logprob, rank)
        return known

    def _tops(self, logprobs: TokenLogprobs) -> list[tuple[int, float]]:
        return list(zip(logprobs.top_tokens, logprobs.top_logprobs, strict=True))[: self._top]

    def _ranked(self, token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": self._text(token_id)}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token_id)
        return {"token": self._text(token_id), "logprob": _finite(logprob), "bytes": list(data)}

    def _text(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)


def _finite(logprob: float) -> float:
    return logprob if logprob > FLOOR else FLOOR  # also for nan


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + PIECE] for start in range(0, len(items), PIECE))
