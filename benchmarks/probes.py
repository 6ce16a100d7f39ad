"""How long `/health` takes while a server is under a load that could hold up its event loop. Standard library alone,
but for the tiny model that is served by default, which `tests` writes.

    python benchmarks/probes.py                                          # this Octavo
    python benchmarks/probes.py --octavo OLD/bin/octavo --octavo NEW/bin/octavo --rounds 3
    python benchmarks/probes.py --url http://127.0.0.1:8000              # a server that runs already

Every load comes from a process of its own. Another one asks for `/health` every 5 ms, whether or not the probes before
have their answers, each on a connection of its own; and a server that does nothing else for an answer, which tells how
much of the time is the machine's. Several `--octavo` take turns, load by load.
"""

import argparse
import asyncio
import gzip
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

Address = tuple[str, int]

CONTEXT = 40_000
"""Tokens that the tiny model takes."""

INTERVAL = 0.005


@dataclass(frozen=True)
class Sizes:
    """How large the loads are."""

    burst: int
    tokens: int
    body: int


@dataclass(frozen=True)
class Request:
    """What is posted."""

    path: str
    body: bytes
    encoding: str = "identity"


def _json(path: str, **fields: object) -> Request:
    return Request(path, json.dumps(fields).encode())


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS = "the quick brown fox "


def _words(sizes: Sizes) -> str:
    return WORDS * ((sizes.body - 200) // len(WORDS))


def _ids(count: int) -> list[int]:
    return [i % 200 + 50 for i in range(count)]


def _chat(content: str) -> Request:
    return _json(CHAT, messages=[{"role": "user", "content": content}], max_tokens=1)


def _messages(sizes: Sizes) -> Request:
    count = min(32_768, sizes.body // 100)
    content = "x" * (sizes.body // count - 50)
    return _json(CHAT, messages=[{"role": "user", "content": content}] * count, max_tokens=1)


def _packed(request: Request) -> Request:
    return Request(request.path, gzip.compress(request.body, 1), "gzip")


LOADS: dict[str, Callable[[Sizes], list[Request]]] = {
    "nothing": lambda _: [],
    "burst": lambda sizes: [_chat("Hello!")] * sizes.burst,
    "scores": lambda sizes: [_json(TEXT, prompt=_ids(sizes.tokens), max_tokens=1, prompt_logprobs=20)],
    "echo": lambda sizes: [_json(TEXT, prompt=_ids(sizes.tokens), max_tokens=1, echo=True, logprobs=5)],
    "text": lambda sizes: [_json(TEXT, prompt=_words(sizes))],
    "word": lambda sizes: [_json(TEXT, prompt="x" * (sizes.body - 200))],
    "ids": lambda sizes: [_json(TEXT, prompt=_ids(min(1_000_000, sizes.body // 5)))],
    "messages": lambda sizes: [_messages(sizes)],
    "messages4": lambda sizes: [_messages(sizes)] * 4,
    "content": lambda sizes: [_chat(_words(sizes))],
    "foreign": lambda sizes: [
        Request(
            CHAT, b'{"messages":[{"role":"user","content":"%b"}]}' % ("größere Bücher " * (sizes.body // 20)).encode()
        )
    ],
    "gzip": lambda sizes: [_packed(_chat(_words(sizes)))] * 4,
    "tokenize": lambda sizes: [_json("/tokenize", prompt=_words(sizes))],
    "detokenize": lambda sizes: [_json("/detokenize", tokens=_ids(min(1_000_000, sizes.body // 5)))],
}
"""What is sent, all of it at once, on connections of their own."""


@dataclass(frozen=True)
class Answer:
    """What came back, and after how long."""

    status: int
    size: int
    seconds: float


async def post(address: Address, request: Request) -> Answer:
    """A request on a connection of its own."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    head = [f"POST {request.path} HTTP/1.1", f"Host: {address[0]}", "Connection: close"]
    head += ["Content-Type: application/json", f"Content-Encoding: {request.encoding}"]
    writer.write("\r\n".join([*head, f"Content-Length: {len(request.body)}", "", ""]).encode() + request.body)
    status, size = await _answer(reader)
    writer.close()
    return Answer(status, size, time.perf_counter() - started)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status and size of all that a server sends before it closes."""
    status, size = 0, 0
    while data := await reader.read(2**20):
        status = status or int(data.split(b" ", 2)[1])
        size += len(data)
    return status, size


def send(address: Address, load: str, sizes: Sizes, control: Connection) -> None:
    """Send a load when told to; send back the answers."""
    requests = LOADS[load](sizes)
    control.send(None)
    control.recv()

    async def run() -> list[Answer]:
        return await asyncio.gather(*(post(address, request) for request in requests))

    control.send(asyncio.run(run()))


def watch(address: Address, idle: Address, control: Connection) -> None:
    """Probe both until told to stop; send back how long the probes took."""
    times: tuple[list[float], list[float]] = ([], [])

    async def probe(where: Address, seconds: list[float]) -> None:
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection(*where)
        writer.write(f"GET /health HTTP/1.1\r\nHost: {where[0]}\r\nConnection: close\r\n\r\n".encode())
        await reader.read()
        writer.close()
        seconds.append(time.perf_counter() - started)

    async def run() -> None:
        probes = set()
        while not control.poll():
            for where, seconds in zip((address, idle), times, strict=True):
                probes.add(asyncio.create_task(probe(where, seconds)))
            await asyncio.sleep(INTERVAL)
        await asyncio.gather(*probes)

    asyncio.run(run())
    control.send(times)


def answer_idly(control: Connection) -> None:
    """A server that has nothing to do."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        control.send(server.sockets[0].getsockname())
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def process(work: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Other work, and the way to talk to it."""
    ours, theirs = multiprocessing.Pipe()
    running = multiprocessing.Process(target=work, args=(*arguments, theirs), daemon=True)
    running.start()
    try:
        yield ours
    finally:
        running.terminate()
        running.join()


def measure(address: Address, idle: Address, load: str, sizes: Sizes) -> tuple[str, list[float]]:
    """Run a load with the watcher beside it. What is to be printed, and the times of the probes."""
    with process(send, address, load, sizes) as sender, process(watch, address, idle) as watcher:
        sender.recv()
        time.sleep(0.2)
        started = time.perf_counter()
        sender.send(None)
        answers: list[Answer] = sender.recv()
        seconds = time.perf_counter() - started
        time.sleep(0.2 if answers else 3)
        watcher.send(None)
        times, idle_times = map(sorted, watcher.recv())
    statuses = [answer.status for answer in answers]
    counts = " ".join(f"{statuses.count(status)}x{status}" for status in sorted(set(statuses)))
    figures = [1e3 * times[int(share * (len(times) - 1))] for share in (0.5, 0.99, 1)]
    bare = 1e3 * idle_times[int(0.99 * (len(idle_times) - 1))]
    text = "{:>7.1f}{:>8.1f}{:>8.1f}{:>10.1f}".format(*figures, bare)
    return f"{text}{seconds:>9.1f}  {counts}", times


@contextmanager
def served(octavo: str, model: str) -> Iterator[Address]:
    """A server of its own, ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [octavo, "serve", model, "--port", str(port), "--max-num-queued-reqs", "8192"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/ready")
        yield "127.0.0.1", port
    finally:
        server.terminate()
        server.wait()


def _wait_until_ready(server: "subprocess.Popen[bytes]", url: str) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{server.args[0]} ended with status {server.returncode}")  # type: ignore[index]


@contextmanager
def tiny_model() -> Iterator[str]:
    """The model of the tests, with a long context."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny import write_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        yield str(write_tiny_model(Path(folder) / "tiny", max_position_embeddings=CONTEXT))


def main() -> None:
    """Parse the command line and run every load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = str(Path(sys.executable).with_name("octavo"))
    parser.add_argument("--octavo", action="append", help="the command that serves; repeat it to compare")
    parser.add_argument("--model", help="what is served; a tiny model by default")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS), metavar="LOAD", help=" ".join(LOADS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--burst", type=int, default=2000, help="chats at once")
    parser.add_argument("--tokens", type=int, default=32_000, help="of a scored prompt")
    parser.add_argument("--bytes", type=int, default=16_000_000, help="of a large body")
    options = parser.parse_args()
    sizes = Sizes(options.burst, options.tokens, options.bytes)
    multiprocessing.set_start_method("spawn")
    with ExitStack() as stack:
        idle = stack.enter_context(process(answer_idly)).recv()
        if options.url:
            url = urlsplit(options.url)
            servers = {options.url: (url.hostname or "127.0.0.1", url.port or 80)}
        else:
            model = options.model or stack.enter_context(tiny_model())
            names = options.octavo or [own]
            servers = {name: stack.enter_context(served(name, model)) for name in names}
        for number, name in enumerate(servers):
            print(f"{'AB'[number] if number < 2 else number}: {name}")  # noqa: T201
        print(f"{'load':<14}{'p50':>7}{'p99':>8}{'longest':>8}{'idle p99':>10}{'load s':>9}  answers")  # noqa: T201
        for load in options.loads:
            for _ in range(options.rounds):
                for number, address in enumerate(servers.values()):
                    text, _times = measure(address, idle, load, sizes)
                    print(f"{load:<12}{'AB'[number] if number < 2 else number:<2}{text}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
