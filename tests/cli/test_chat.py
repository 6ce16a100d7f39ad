"""`octavo chat` with servers, proxies and terminals of every kind: an answer, or one line that says what is wrong."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cli.command import Result, octavo, octavo_process, one_line

OCTAVO = [sys.executable, "-m", "octavo"]
MODELS = b'{"object": "list", "data": [{"id": "tiny"}]}'


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def answer(body: bytes, media_type: str = "text/event-stream", status: str = "200 OK") -> bytes:
    """A response that ends with its connection."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\nconnection: close\r\n\r\n".encode() + body


def _whole_request(connection: socket.socket) -> bytes:
    """Read to the end of the body: closing a connection with something unread resets it, and the answer may be lost."""
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
        data += more
    length = re.search(rb"(?i)content-length: (\d+)", data)
    missing = data.find(b"\r\n\r\n") + 4 + int(length[1] if length else 0) - len(data)
    while missing > 0 and (more := connection.recv(65536)):
        data, missing = data + more, missing - len(more)
    return data


@contextmanager
def server(
    reply: bytes, models: bytes = MODELS, *, reset: bool = False, asked: list[bytes] | None = None
) -> Iterator[str]:
    """Something that answers every POST with the same bytes. Yields its URL. `asked` gets the requests."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    head = _whole_request(connection)
                    if asked is not None:
                        asked.append(head)
                    connection.sendall(answer(models, "application/json") if head.startswith(b"GET") else reply)
                    if reset and head.startswith(b"POST"):
                        linger = b"\1\0\0\0\0\0\0\0"
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def chat(url: str, *arguments: str, **variables: str) -> Result:
    return octavo("chat", "-p", "hi", "--url", url, *arguments, **variables)


def test_every_way_to_write_a_stream() -> None:
    stream = (
        b"\xef\xbb\xbf: hello\r\n\r\n"
        b'data: {"id": "x"}\r\n\r\n'  # no choices
        b'data: {"choices": []}\n\ndata: {"choices": null}\n\ndata: {"choices": [{"delta": null}]}\n\n'
        b'data: {"choices": [{"delta": {"content": null}}]}\n\nevent: usage\n\n'
        b'data:{"choices":\ndata:[{"delta":{"content":"A"}}]}\r\r'
    )
    separators = 'data: {"choices": [{"delta": {"content": "\x85\u2028\u2029"}}]}\n\n'.encode()
    with server(answer(stream + separators + chunk("Z") + b"data:[DONE]\n\nnonsense")) as url:
        result = chat(url)
        assert result.stdout == "A\x85\u2028\u2029Z\n", result.stderr
        assert result.returncode == 0
        for base in (f"{url}/", f"{url}/v1", f"{url}/v1/"):
            assert chat(base).returncode == 0


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer(b'data: {"error": {"message": "it broke"}}\n\n'), "it broke"),
        (answer(b'data: {"error": "it broke"}\n\n'), "it broke"),
        (answer(b'data: {"error": {"code": 5}}\n\n'), "reported an error"),
        (answer(b"data: nonsense\n\n"), "not JSON: 'nonsense'"),
        (answer(b"data: [1]\n\n"), "no chunk of an answer"),
        (answer(b""), "ended in the middle"),
        (answer(b"<html>", "text/html"), "text/html instead of a stream"),
        (answer(b"{}", "application/json"), "application/json instead of a stream"),
        (answer(b'{"error": {"message": "too long"}}', "application/json", "400 Bad Request"), "too long"),
        (answer(b'{"error": "too long"}', "application/json", "400 Bad Request"), "too long"),
        (answer(b'{"detail": "too long"}', "application/json", "422 Unprocessable Entity"), "too long"),
        (answer(b"<html>", "text/html", "502 Bad Gateway"), "502 Bad Gateway"),
        (answer(b"[]", "application/json", "500 Internal Server Error"), "500 Internal Server Error"),
        (b"nonsense\r\n\r\n", "lost the server"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99\r\n\r\ndata", "lost the server"),
        (b"", "lost the server"),
    ],
)
def test_what_servers_answer_instead(reply: bytes, words: str) -> None:
    with server(reply) as url:
        assert words in one_line(chat(url))


@pytest.mark.parametrize("arguments", [["second"], ["--model", "second"]])
def test_a_servers_second_model(arguments: list[str]) -> None:
    models = b'{"data": [{"id": "tiny"}, {"id": "second"}]}'
    asked: list[bytes] = []
    with server(answer(chunk("Hi") + b"data: [DONE]\n\n"), models, asked=asked) as url:
        assert chat(url, *arguments).stdout == "Hi\n"
        assert b'"model":"second"' in asked[-1]
        assert chat(url).stdout == "Hi\n"
        assert b'"model":"tiny"' in asked[-1]
        assert "has no model 'third'; it has tiny, second" in one_line(chat(url, "third"))


def test_a_server_that_wants_a_key() -> None:
    with server(answer(b'{"error": {"message": "Wrong key."}}', "application/json", "401 Unauthorized")) as url:
        assert "Wrong key; yours is taken from --api-key or OCTAVO_API_KEY" in one_line(chat(url))


def test_a_reset_in_the_middle_keeps_what_was_said() -> None:
    with server(answer(chunk("Par")), reset=True) as url:
        result = chat(url)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("models", [b"<html>", b"[]", b"{}", b'{"data": []}', b'{"data": [1]}', b'{"data": null}'])
def test_what_lists_no_models(models: bytes) -> None:
    with server(b"", models) as url:
        assert "lists no models" in one_line(chat(url))


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "localhost:8000", "http://", "ftp://localhost", "http://[", "http://a:b", "http://a b", "\x01"],
)
def test_what_is_no_url(url: str) -> None:
    line = one_line(chat(url))
    assert "no URL of a server" in line or "must not be empty" in line


def test_loopback_needs_no_proxy() -> None:
    nowhere = "http://127.0.0.1:9"
    proxies = {"HTTP_PROXY": nowhere, "http_proxy": nowhere, "ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": ""}
    with server(answer(chunk("A") + b"data: [DONE]\n\n")) as url:
        assert chat(url, **proxies).stdout == "A\n"
        assert chat(url.replace("127.0.0.1", "localhost"), **proxies).stdout == "A\n"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x", "http://a:b"])
def test_proxies_that_cannot_be_used(proxy: str) -> None:
    line = one_line(chat("http://octavo.invalid", ALL_PROXY=proxy, all_proxy=proxy, NO_PROXY=""))
    assert "proxy" in line
    assert "ALL_PROXY" in line


def test_a_proxy_that_is_not_there() -> None:
    line = one_line(chat("http://octavo.invalid", HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9"))
    assert "no server answers" in line


def test_text_that_the_terminal_cannot_show() -> None:
    with server(answer(chunk("größer 😀") + b"data: [DONE]\n\n")) as url:
        encoding = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
        result = octavo_process("chat", "-p", "hi", "--url", url, **encoding)
    assert result.stdout == "gr??er ?\n", result.stderr
    assert result.returncode == 0


def test_input_that_is_no_text() -> None:
    with server(answer(chunk("A") + b"data: [DONE]\n\n")) as url:
        for arguments, given in (([b"-p", b"\xff"], b""), ([], b"\xff\xfe")):
            command = [*OCTAVO, "chat", "--url", url, *arguments]
            result = subprocess.run(command, input=given, capture_output=True, timeout=60)
            assert result.stdout == b"A\n", result.stderr


COMMANDS = {
    "chat": None,
    "config": ["config", "show", "tiny"],
    "pull": ["pull", "--list"],
    "help": ["--help"],
    "version": ["--version"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_cannot_be_written(command: str, tmp_path: Path) -> None:
    with server(answer(chunk("A") * 5 + b"data: [DONE]\n\n")) as url:
        arguments = [*OCTAVO, *(COMMANDS[command] or ["chat", "-p", "hi", "--url", url])]
        with Path("/dev/full").open("wb") as full:
            result = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert result.returncode == 1
        assert result.stderr.decode().strip() == "octavo: No space left on device"
        ends = os.pipe()
        os.close(ends[0])
        result = subprocess.run(arguments, stdout=ends[1], stderr=subprocess.PIPE, timeout=60)
        os.close(ends[1])
        assert result.returncode == 1
        assert result.stderr == b""


def test_ctrl_c_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n" + chunk("A")
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as first:
                first.recv(65536)
                first.sendall(answer(MODELS, "application/json"))
            with listener.accept()[0] as second:
                second.recv(65536)
                second.sendall(reply)
                stop.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [*OCTAVO, "chat", "-p", "hi", "--url", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"A"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        stop.set()
        thread.join()
    assert process.returncode == 130
    assert said.strip() == b""


@pytest.mark.parametrize("module", ["octavo.cli.main", "click", "octavo.cli.chat", "httpx"])
def test_ctrl_c_while_modules_are_imported(tmp_path: Path, module: str) -> None:
    """The moment is made to come: the import of the module itself is interrupted."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    command = [*OCTAVO, "chat", "-p", "hi", "--url", "http://127.0.0.1:9"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, timeout=60, env=environment)
    assert result.returncode == -signal.SIGINT
    assert result.stderr == b""


def test_its_own_server_ends_with_a_chat_that_is_killed(tiny_model: Path) -> None:
    command = [*OCTAVO, "chat", str(tiny_model), "-p", "hi", "--max-tokens", "200"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        family = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while not (started := family.children(recursive=True)) or len(started) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
