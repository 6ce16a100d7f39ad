"""How long `/health` takes while a server is under a load that could hold up its event loop. Standard library alone.

    octavo serve smollm2:135m --max-num-queued-reqs 4096 &
    python benchmarks/probes.py --url http://127.0.0.1:8000

The loads, each of them by itself: a burst of short chats on connections of their own; long prompts whose tokens are
all scored; large bodies. A process of its own asks for `/health` every 10 ms, and again before it has an answer.
"""

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

Address = tuple[str, int]


async def post(address: Address, path: str, body: bytes) -> tuple[int, int]:
    """The status and the size of the answer to a request on a connection of its own."""
    reader, writer = await asyncio.open_connection(*address)
    head = f"POST {path} HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]) if answer else 0, len(answer)


async def burst(address: Address, count: int) -> None:
    """Short chats, all at once."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}).encode()
    report(await asyncio.gather(*(post(address, "/v1/chat/completions", body) for _ in range(count))))


async def scores(address: Address, tokens: int) -> None:
    """A few long prompts with log-probabilities."""
    body = {"prompt": [i % 1000 + 100 for i in range(tokens)], "max_tokens": 1, "prompt_logprobs": 5}
    report([await post(address, "/v1/completions", json.dumps(body).encode()) for _ in range(3)])


async def bodies(address: Address, size: int) -> None:
    """Large requests, which are refused in the end."""
    prompt = [i % 1000 + 100 for i in range(size // 5)]
    messages = [{"role": "user", "content": "x" * 20}] * (size // 60)
    for path, field, value in (
        ("/v1/completions", "prompt", prompt),
        ("/v1/chat/completions", "messages", messages),
        ("/tokenize", "prompt", "word " * (size // 5)),
    ):
        report([await post(address, path, json.dumps({field: value}).encode())])


def report(answers: list[tuple[int, int]]) -> None:
    """Print how many answers there were of each status, and their bytes."""
    statuses = [status for status, _ in answers]
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    print(f"  answers by status {counts}, {sum(size for _, size in answers):,} bytes")  # noqa: T201


async def probe(address: Address, seconds: list[float]) -> None:
    """One `/health`."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET /health HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n\r\n".encode())
    await reader.read()
    writer.close()
    seconds.append(time.perf_counter() - started)


def watch(address: Address, control: Connection) -> None:
    """Probe until told to stop; send back how long each probe took."""

    async def run() -> list[float]:
        seconds: list[float] = []
        probes = set()
        while not control.poll():
            probes.add(asyncio.create_task(probe(address, seconds)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*probes)
        return seconds

    control.send(asyncio.run(run()))


def measure(name: str, address: Address, load: Callable[[], Awaitable[None]]) -> None:
    """Run a load with the watcher beside it, and print what it saw."""
    ours, theirs = multiprocessing.Pipe()
    watcher = multiprocessing.Process(target=watch, args=(address, theirs))
    watcher.start()

    async def run() -> None:
        await asyncio.sleep(0.5)
        await load()

    print(name)  # noqa: T201
    asyncio.run(run())
    ours.send(None)
    times = sorted(ours.recv())
    watcher.join()
    p50, p99 = (1e3 * times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    print(f"  /health: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {1e3 * times[-1]:.1f} ms of {len(times)}")  # noqa: T201


def main() -> None:
    """Parse the command line and run every load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--burst", type=int, default=2000, help="chats at once")
    parser.add_argument("--tokens", type=int, default=8000, help="of a scored prompt")
    parser.add_argument("--bytes", type=int, default=15_000_000, help="of a large body")
    options = parser.parse_args()
    url = urlsplit(options.url)
    address = (url.hostname or "127.0.0.1", url.port or 80)
    measure("nothing", address, lambda: asyncio.sleep(3))
    measure(f"a burst of {options.burst} chats", address, lambda: burst(address, options.burst))
    measure(f"scored prompts of {options.tokens} tokens", address, lambda: scores(address, options.tokens))
    measure(f"bodies of {options.bytes:,} bytes", address, lambda: bodies(address, options.bytes))


if __name__ == "__main__":
    main()
