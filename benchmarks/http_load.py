"""Streams from an OpenAI-compatible server: throughput, and when tokens come. Standard library alone.

    octavo serve smollm2:135m &
    python benchmarks/http_load.py --url http://127.0.0.1:8000 --requests 64 --concurrency 32

Prompts are random token ids, end-of-sequence is ignored, decoding is greedy: the work of `octavo bench offline`.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Stream:
    """One request's times, in seconds of `time.perf_counter`; tokens by the server's own count."""

    sent: float
    events: list[float] = field(default_factory=list)
    output_tokens: int = 0


@dataclass(frozen=True)
class Load:
    """What is asked of the server."""

    host: str
    port: int
    model: str
    input_len: int
    output_len: int
    vocab_size: int


async def fetch(load: Load, path: str, body: bytes | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request on a connection of its own; returns after the header of a reply with status 200."""
    reader, writer = await asyncio.open_connection(load.host, load.port)
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {load.host}\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"\r\n" + (body or b""))
    header = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in header.split(b"\r\n", 1)[0]:
        reason = await reader.read()
        raise SystemExit(f"{path}: {header.splitlines()[0].decode()}: {reason[-500:].decode(errors='replace')}")
    return reader, writer


async def only_model(load: Load) -> str:
    """The first model the server names."""
    reader, writer = await fetch(load, "/v1/models", None)
    text = (await reader.read()).decode()
    writer.close()
    return str(json.loads(text[text.index("{") : text.rindex("}") + 1])["data"][0]["id"])


async def stream(load: Load, rng: random.Random) -> Stream:
    """One completion, streamed to its end."""
    body = {
        "model": load.model,
        "prompt": [rng.randrange(load.vocab_size) for _ in range(load.input_len)],
        "max_tokens": load.output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found = Stream(time.perf_counter())
    reader, writer = await fetch(load, "/v1/completions", json.dumps(body).encode())
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if b'"finish_reason"' in line and b'"choices":[]' not in line.replace(b" ", b""):
            found.events.append(time.perf_counter())
        if b'"completion_tokens"' in line:
            found.output_tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    writer.close()
    if found.output_tokens != load.output_len:
        raise SystemExit(f"a stream ended after {found.output_tokens} of {load.output_len} tokens")
    return found


async def run(load: Load, requests: int, concurrency: int, seed: int) -> dict[str, float]:
    """Keep `concurrency` streams open until all requests are answered."""
    rng, slots = random.Random(seed), asyncio.Semaphore(concurrency)

    async def one() -> Stream:
        async with slots:
            return await stream(load, rng)

    await stream(load, rng)  # first calls pay for set-up
    start = time.perf_counter()
    streams = await asyncio.gather(*(one() for _ in range(requests)))
    seconds = time.perf_counter() - start
    gaps = sorted(b - a for s in streams for a, b in zip(s.events, s.events[1:], strict=False))
    return {
        "seconds": seconds,
        "output_tokens_per_second": requests * load.output_len / seconds,
        "total_tokens_per_second": requests * (load.input_len + load.output_len) / seconds,
        "median_time_to_first_token_seconds": statistics.median(s.events[0] - s.sent for s in streams),
        "median_time_per_output_token_seconds": statistics.median(
            (s.events[-1] - s.events[0]) / max(load.output_len - 1, 1) for s in streams
        ),
        "p99_gap_seconds": gaps[int(0.99 * (len(gaps) - 1))] if gaps else 0.0,
    }


def main() -> None:
    """Parse the command line, run, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=49152, help="token ids are drawn below it")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the prompts: the same ones again are in the prefix cache"
    )
    args = parser.parse_args()
    url = urlsplit(args.url)
    load = Load(url.hostname or "127.0.0.1", url.port or 80, "", args.input_len, args.output_len, args.vocab_size)

    async def measure() -> dict[str, float]:
        model = await only_model(load)
        named = Load(load.host, load.port, model, load.input_len, load.output_len, load.vocab_size)
        return await run(named, args.requests, args.concurrency, args.seed)

    try:
        figures = asyncio.run(measure())
    except OSError as error:
        raise SystemExit(f"{args.url}: {error}") from None
    json.dump(figures, sys.stdout, indent=2)
    print()  # noqa: T201


if __name__ == "__main__":
    main()
