"""What comes all at once holds nobody up: counted in turns of the event loop, not in seconds."""

import asyncio
import errno
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop

from octavo.server import acceptor
from octavo.server.acceptor import CONNECTIONS_PER_TURN, WELCOMED_PER_TURN, Acceptor
from octavo.server.dialects.logprobs import LogprobFormat
from octavo.server.entrance import WHOLE, Entrance
from octavo.server.settings import ServerSettings
from octavo.text.template import ChatTemplate, _Template
from tests.server.fake import FakeEngine, running, served
from tests.server.sse import events


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On the loop that the server uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 30))


def test_requests_are_begun_a_few_in_a_turn_and_in_their_order() -> None:
    async def test() -> None:
        entrance, turn, begun = Entrance(per_turn=3 * WHOLE), 0, []

        async def begin(number: int) -> None:
            await entrance.enter()
            begun.append((number, turn))

        tasks = [asyncio.create_task(begin(number)) for number in range(100)]
        tasks[50].cancel()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            turn += 1
        assert [number for number, _ in begun] == [number for number in range(100) if number != 50]
        assert max(Counter(when for _, when in begun).values()) <= 3
        await entrance.enter()  # and later ones go straight in
        await entrance.enter()

    run(test)


def test_small_requests_are_begun_several_in_a_turn_and_in_their_order() -> None:
    async def test() -> None:
        entrance, turn, begun = Entrance(per_turn=8), 0, list[tuple[int, int]]()
        sizes = [1] * 20 + [8] + [1] * 20 + [8, 8, 1]
        for number, size in enumerate(sizes):
            if entrance.try_enter(size):
                begun.append((number, turn))
            else:
                entrance.call_in_turn(lambda number=number: begun.append((number, turn)), size)  # type: ignore[misc]
        while len(begun) < len(sizes):
            turn += 1
            await asyncio.sleep(0)
        assert [number for number, _ in begun] == list(range(len(sizes)))
        most = Counter[int]()
        for number, when in begun:
            most[when] += sizes[number]
        assert max(most.values()) <= 8
        assert len(most) <= 10

    run(test)


@contextmanager
def knocking(listener: socket.socket, count: int) -> Iterator[None]:
    """So many clients have connected."""
    clients = [socket.create_connection(listener.getsockname()) for _ in range(count)]
    try:
        yield
    finally:
        for client in clients:
            client.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener


class Counting(asyncio.Protocol):
    connected = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counting.connected += 1
        transport.close()


def test_many_connections_are_accepted_in_a_turn(listener: socket.socket) -> None:
    async def test() -> None:
        Counting.connected, turns = 0, 0
        server = Acceptor(listener, Counting)
        while Counting.connected < 200:
            await asyncio.sleep(0)
            turns += 1
        assert turns < 200 // WELCOMED_PER_TURN + 10  # and not two hundred
        server.close()
        await server.wait_closed()
        with knocking(listener, 1):
            await asyncio.sleep(0.05)
        assert Counting.connected == 200

    with knocking(listener, 200):
        run(test)


class Noting(asyncio.Protocol):
    """Notes what came on which connection, in the order in which they were connected."""

    first: ClassVar[list[bytes]]

    def data_received(self, data: bytes) -> None:
        Noting.first.append(data)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("probe", [b"GET /health HTTP/1.1\r\n", b"HEAD /ready HTTP/1.1\r\n"])
def test_a_probe_overtakes_those_that_came_before_it(listener: socket.socket, probe: bytes, silent: bool) -> None:
    async def test() -> None:
        Noting.first = []
        clients = [socket.create_connection(listener.getsockname()) for _ in range(301)]
        server = Acceptor(listener, Noting)
        if silent:  # they send when they have been accepted
            for _ in range(301 // CONNECTIONS_PER_TURN + 2):
                await asyncio.sleep(0)
        for client in clients[:-1]:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        clients[-1].sendall(probe)
        while len(Noting.first) < 301:
            await asyncio.sleep(0)
        # The line grows for five turns, and a connection takes another two to be read.
        assert Noting.first.index(probe) < 10 * WELCOMED_PER_TURN
        for client in clients:
            client.close()
        server.close()
        await server.wait_closed()

    run(test)


def test_connections_that_leave_the_line_do_not_stop_it(listener: socket.socket) -> None:
    async def test() -> None:
        Counting.connected = 0
        server = Acceptor(listener, Counting)
        for number in range(200):
            client = socket.create_connection(listener.getsockname())
            if number % 3 == 0:  # a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        with knocking(listener, 100):
            while Counting.connected < 100:
                await asyncio.sleep(0)
        server.close()
        await server.wait_closed()

    run(test)


class Line:
    """Requests that wait for their turn until `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self.held = threading.Event()
        self._patch = monkeypatch
        monkeypatch.setattr(Entrance, "try_enter", lambda _, size: False)
        monkeypatch.setattr(Entrance, "call_in_turn", lambda _, begin, size: self._hold(begin))

    def _hold(self, begin: Callable[[], None]) -> None:
        self.waiting.append((asyncio.get_running_loop(), begin))
        self.held.set()

    def go_on(self) -> None:
        self._patch.undo()
        for loop, begin in self.waiting:
            loop.call_soon_threadsafe(begin)


def test_probes_are_answered_while_requests_wait_for_their_turn(
    url: str, http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On connections that were there before, too. What comes in pieces is put together again."""
    assert http.get("/health").status_code == 200
    line = Line(monkeypatch)
    body = b'{"prompt": "hi", "max_tokens": 1}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(urlsplit(url).netloc.split(":"), timeout=30) as client:  # type: ignore[arg-type]
        client.sendall(head[:20])
        assert line.held.wait(30)
        client.sendall(head[20:] + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        for path in ("/health", "/ready"):
            assert http.get(path).status_code == 200
            assert http.head(path).status_code == 200
        assert len(line.waiting) == 1
        line.go_on()
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_request_whose_client_leaves_before_its_turn_is_forgotten(
    url: str, http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(monkeypatch)
    with socket.create_connection(urlsplit(url).netloc.split(":"), timeout=30) as client:  # type: ignore[arg-type]
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.held.wait(30)
    line.go_on()
    assert http.get("/v1/models").status_code == 200


def test_accepting_goes_on_when_there_are_descriptors_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Exhausted:
        left = 2

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

        def accept(self) -> Any:
            if self.left:
                self.left -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return listener.accept()

    async def test() -> None:
        Counting.connected = 0
        server = Acceptor(Exhausted(), Counting)  # type: ignore[arg-type]
        while Counting.connected < 5:
            await asyncio.sleep(0.01)
        server.close()

    monkeypatch.setattr(acceptor, "PAUSE_SECONDS", 0.01)
    with knocking(listener, 5):
        run(test)
    assert caplog.text.count("Too many open files") == 2


def test_a_crowd_is_answered(engine: FakeEngine) -> None:
    with running(ServerSettings(), served(engine)) as url:

        async def test() -> None:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=25) as client:
                body = {"prompt": "hi", "max_tokens": 1}
                posts = [client.post("/v1/completions", json=body) for _ in range(150)]
                answers = await asyncio.gather(*posts, client.get("/health"))
                assert {answer.status_code for answer in answers} == {200}

        run(test)


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_log_probabilities_of_whole_answers_are_written_in_threads(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    """Those of a long prompt take a second, in which everything else would stand still."""
    names = set()
    ranked, tops = LogprobFormat._ranked, LogprobFormat._tops

    def note(self: LogprobFormat, *arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        return (tops if len(arguments) == 1 else ranked)(self, *arguments)

    monkeypatch.setattr(LogprobFormat, "_ranked", note)
    monkeypatch.setattr(LogprobFormat, "_tops", note)
    content = "word " * 40
    body = {"messages": [{"role": "user", "content": content}], "prompt": content, "max_tokens": 3}
    scored = {"prompt_logprobs": 2, "logprobs": True if route.startswith("chat") else 2}
    assert "prompt_logprobs" in http.post(f"/v1/{route}", json=body | scored).text
    assert len(names) >= 1
    assert all(name.startswith("octavo-text") for name in names)


def test_a_long_echo_comes_in_pieces(http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.deployments.choice.ECHO_PIECE", 16)
    body = {"prompt": [40 + i for i in range(100)], "echo": True, "logprobs": 1, "max_tokens": 1}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]
    chunks = [chunk["choices"][0] for chunk in events(http.post("/v1/completions", json=body | {"stream": True}).text)]
    assert len(chunks) == 8
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for key, values in whole["logprobs"].items():
        assert [value for chunk in chunks for value in chunk["logprobs"][key]] == values


@pytest.mark.parametrize(
    ("loops", "content", "in_thread"), [(1, "hi", False), (20_000, "hi", True), (1, "x" * 5000, True)]
)
def test_templates_render_in_threads_unless_they_are_brief(
    engine: FakeEngine, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, loops: int, content: str, in_thread: bool
) -> None:
    source = "{% for i in range(" + str(loops) + ") %}{% endfor %}{{ messages[0].content }}"
    monkeypatch.setattr(engine.tokenizer, "chat_template", ChatTemplate({"default": source}, {}))
    rendered: list[str] = []
    run = _Template.run

    def noted(template: _Template, variables: dict[str, Any], *work: int) -> str:
        text = run(template, variables, *work)
        rendered.append(threading.current_thread().name)
        return text

    monkeypatch.setattr(_Template, "run", noted)
    for _ in range(2):  # the first compiles it, whatever it is, in a thread
        rendered.clear()
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], "max_tokens": 1})
    assert [name.startswith("octavo-text") for name in rendered] == [in_thread]
