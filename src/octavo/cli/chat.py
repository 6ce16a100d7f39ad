"""`octavo chat`: talk to a model in the terminal, on a server that is running or on one of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from octavo.cli.configuration import environment_of_a_model
from octavo.cli.console import console, fetch, output
from octavo.errors import OctavoError

HELP = "Ctrl-C stops an answer, Ctrl-D ends. /clear forgets the conversation, /exit ends."


class ChatError(OctavoError):
    """The server did not answer as asked."""


@dataclass
class Chat:
    """One conversation with a server."""

    client: httpx.Client
    model: str
    parameters: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> Iterator[str]:
        """Send a message and yield the answer in pieces. What was answered becomes part of the conversation."""
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        body = {"model": self.model, "messages": self.messages, "stream": True, **self.parameters}
        try:
            with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ChatError(_error_message(response))
                for event in _events(response):
                    if "error" in event:
                        raise ChatError(event["error"]["message"])
                    for choice in event["choices"]:
                        piece = choice["delta"].get("content")
                        if piece:
                            pieces.append(piece)
                            yield piece
        except httpx.HTTPError as error:
            raise ChatError(f"lost the server at {self.client.base_url}: {error}") from error
        finally:
            if pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:  # templates want questions and answers in turn
                self.messages.pop()


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of a stream of server-sent events."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status_code} {response.reason_phrase}"


def chat(
    model: str,
    *,
    url: str | None,
    api_key: str | None,
    system: str | None,
    prompt: str | None,
    parameters: dict[str, Any],
) -> None:
    """Answer one prompt (given, or piped in), or hold a conversation.

    Args:
        url: of a running server; None starts one for the time of the chat.
        parameters: sampling parameters of every request.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # leave by the way that ends the server, too
        signal.signal(number, lambda *_: sys.exit(1))
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with _server(model) if url is None else _remote(url) as client:
        client.headers.update(headers)
        conversation = Chat(client, _model_name(client) if url else model, parameters, system)
        if prompt is not None:
            _print_answer(conversation, prompt)
        else:
            _converse(conversation)


def _converse(conversation: Chat) -> None:
    import readline  # noqa: F401  (line editing and history for input())

    console.print(f"{conversation.model}. {HELP}", style="dim")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        match text:
            case "":
                continue
            case "/exit" | "/quit" | "/bye":
                return
            case "/clear":
                conversation.clear()
            case _ if text.startswith("/"):
                console.print(HELP, style="dim")
            case _:
                try:
                    _print_answer(conversation, text)
                except KeyboardInterrupt:
                    console.print("\n[stopped]", style="dim", markup=False)
                except ChatError as error:
                    console.print(str(error), style="red", markup=False)


def _print_answer(conversation: Chat, text: str) -> None:
    for piece in conversation.ask(text):
        output.file.write(piece)
        output.file.flush()
    output.file.write("\n")


@contextmanager
def _remote(url: str) -> Iterator[httpx.Client]:
    base = url.rstrip("/").removesuffix("/v1")
    with httpx.Client(base_url=base, timeout=httpx.Timeout(600, connect=5)) as client:
        yield client


def _model_name(client: httpx.Client) -> str:
    try:
        response = client.get("/v1/models")
    except httpx.HTTPError as error:
        raise ChatError(f"no server answers at {client.base_url}: {error}; start one with: octavo serve") from error
    if response.status_code != 200:
        raise ChatError(_error_message(response))
    return str(response.json()["data"][0]["id"])


@contextmanager
def _server(model: str) -> Iterator[httpx.Client]:
    """A server of our own on a socket that nobody else sees, for as long as the chat lasts."""
    fetch(model)
    with tempfile.TemporaryDirectory(prefix="octavo-chat-") as folder:
        socket = str(Path(folder, "server"))
        command = [sys.executable, "-m", "octavo", "serve", model, "--uds", socket, "--log-level", "warning"]
        # Its own session: Ctrl-C stops an answer, not the server.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment_of_a_model(os.environ)
        )
        try:
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=socket), base_url="http://octavo", timeout=httpx.Timeout(600)
            ) as client:
                with console.status(f"loading {model}"):
                    _wait_until_ready(client, process)
                yield client
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Ask every 50 ms; the server's own message tells why when it ends instead."""
    while process.poll() is None:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass  # its socket is not open yet
        time.sleep(0.05)
    raise ChatError(f"the server could not start (exit status {process.returncode}); its message is above")
