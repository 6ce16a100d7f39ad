"""What structured output costs: streams that keep to a JSON schema beside as many that are free, in turn.

    octavo serve smollm2:135m &
    python benchmarks/structured.py --url http://127.0.0.1:8000 --concurrency 32

Both generate the same number of tokens for the same prompts. Prints a line per round, then the medians: the share of
the free streams' tokens per second that the others reach, and how much later their first token comes. Needs httpx.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import httpx

PRODUCT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 5, "maxLength": 40},
        "description": {"type": "string", "minLength": 40, "maxLength": 200},
        "price": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name", "description", "price", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PRODUCT, "minItems": 100}
"""Longer than any answer here, so that none ends early."""

QUESTION = "List the products of a shop as JSON, with name, description, price and tags."
STRUCTURED = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "shop", "schema": SCHEMA, "strict": True}}
}


@dataclass(frozen=True)
class Round:
    """Tokens per second of all streams, and the median seconds to their first tokens."""

    throughput: float
    first_token: float


async def stream(client: httpx.AsyncClient, fields: dict[str, Any]) -> tuple[float, int]:
    """Seconds to the first text of an answer, and its tokens."""
    sent, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=fields) as answer:
        if answer.status_code != 200:
            raise SystemExit((await answer.aread()).decode())
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if first == 0.0 and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.perf_counter() - sent
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return first, tokens


async def measure(client: httpx.AsyncClient, args: argparse.Namespace, seed: int, more: dict[str, Any]) -> Round:
    """All the streams at once."""
    fields = {
        "model": args.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": args.output_len,
        "ignore_eos": True,
        "temperature": 0.7,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    begun = time.perf_counter()
    streams = await asyncio.gather(
        *(stream(client, fields | {"seed": seed * args.concurrency + number}) for number in range(args.concurrency))
    )
    seconds = time.perf_counter() - begun
    tokens = sum(count for _, count in streams)
    return Round(tokens / seconds, statistics.median(first for first, _ in streams))


async def run(args: argparse.Namespace) -> None:
    """Both kinds in turn, the first round of each not counted."""
    limits = httpx.Limits(max_connections=args.concurrency)
    async with httpx.AsyncClient(base_url=args.url, timeout=600, limits=limits, trust_env=False) as client:
        if not args.model:
            args.model = (await client.get("/v1/models")).json()["data"][0]["id"]
        ratios, later = [], []
        for number in range(args.rounds + 1):
            free = await measure(client, args, number, {})
            structured = await measure(client, args, number, STRUCTURED)
            if number == 0:
                continue
            ratios.append(structured.throughput / free.throughput)
            later.append(structured.first_token - free.first_token)
            print(  # noqa: T201
                f"free {free.throughput:7.1f} tokens/s, structured {structured.throughput:7.1f} ({ratios[-1]:.3f}); "
                f"first token {free.first_token * 1e3:6.1f} ms, {later[-1] * 1e3:+.1f} ms",
                flush=True,
            )
    print(f"median: {statistics.median(ratios):.3f} of the throughput, {statistics.median(later) * 1e3:+.1f} ms")  # noqa: T201


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="", help="the server's first if absent")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=7)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
