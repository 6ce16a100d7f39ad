"""`octavo chat`: talk to a model in the terminal, on a server that is running or on one of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from octavo.cli.configuration import environment_of_a_model
from octavo.cli.console import console, fetch, output
from octavo.cli.events import events
from octavo.cli.remote import RemoteError, connect, connect_unix, error_message, lost, status_error
from octavo.weights.catalogue import DEFAULT_MODEL
from octavo.worker.folder import PrivateFolder

LISTED = 10
"""Models that an error lists at most."""

HELP = "Ctrl-C stops an answer, Ctrl-D ends. /clear forgets the conversation, /exit ends."


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
                    raise status_error(response)
                for piece in _pieces(response):
                    pieces.append(piece)
                    yield piece
        except httpx.HTTPError as error:
            raise lost(self.client, error) from error
        finally:
            if pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:  # templates want questions and answers in turn
                self.messages.pop()


def _pieces(response: httpx.Response) -> Iterator[str]:
    """The text in a stream of chunks. Raises RemoteError: the stream is none, or reports an error."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "text/event-stream":
        raise RemoteError(f"the server answered with {media_type or 'no content type'} instead of a stream of events")
    for data in events(response.iter_bytes()):
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise RemoteError(f"the server sent an event that is not JSON: {data[:100]!r}") from error
        if not isinstance(event, dict):
            raise RemoteError(f"the server sent an event that is no chunk of an answer: {data[:100]!r}")
        if event.get("error"):
            raise RemoteError(error_message(event, f"the server reported an error: {data[:100]!r}"))
        yield from _texts(event)
    raise RemoteError("the answer ended in the middle: the server closed the stream")


def _texts(chunk: dict[str, Any]) -> Iterator[str]:
    """A chunk's text; chunks without choices, or with further kinds of deltas, have none."""
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            yield text


def chat(
    model: str | None,
    *,
    url: str | None,
    api_key: str | None,
    system: str | None,
    prompt: str | None,
    parameters: dict[str, Any],
) -> None:
    """Answer one prompt (given, or piped in), or hold a conversation.

    Args:
        model: None is the default one or, with a URL, the first that the server lists.
        url: of a running server; None starts one for the time of the chat.
        parameters: sampling parameters of every request.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # leave by the way that ends the server, too
        signal.signal(number, lambda *_: sys.exit(1))
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    # Bytes of an argument that are no UTF-8 came as surrogates, which JSON cannot hold.
    prompt, system = (text and os.fsencode(text).decode(errors="replace") for text in (prompt, system))
    if prompt is not None and not prompt.strip():
        raise RemoteError("there is nothing to answer: the prompt is empty")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    own = model or DEFAULT_MODEL
    with _server(own) if url is None else connect(url) as client:
        client.headers.update(headers)
        conversation = Chat(client, own if url is None else _served_model(client, model), parameters, system)
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
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:  # a moment too late for the answer that it was meant for, maybe
            console.print("\nCtrl-D ends.", style="dim")
            continue
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
                except RemoteError as error:
                    console.print(str(error), style="red", markup=False)


def _print_answer(conversation: Chat, text: str) -> None:
    for piece in conversation.ask(text):
        output.file.write(piece)
        output.file.flush()
    output.file.write("\n")


def _served_model(client: httpx.Client, wanted: str | None) -> str:
    """The model that is wanted, or the first that the server lists. Raises RemoteError: it has no such model."""
    try:
        response = client.get("/v1/models")
    except httpx.HTTPError as error:
        raise RemoteError(f"no server answers at {client.base_url}: {error}; start one with: octavo serve") from error
    if response.status_code != 200:
        raise status_error(response)
    try:
        names = [str(card["id"]) for card in response.json()["data"]]
        first = names[0]
    except (ValueError, LookupError, TypeError) as error:
        raise RemoteError(f"what answers at {client.base_url} lists no models: it is no server of this kind") from error
    if wanted is not None and wanted not in names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise RemoteError(f"{client.base_url} has no model {wanted!r}; it has {', '.join(names[:LISTED])}{more}")
    return first if wanted is None else wanted


@contextmanager
def _server(model: str) -> Iterator[httpx.Client]:
    """A server of our own on a socket that nobody else sees, for as long as the chat lasts."""
    fetch(model)
    with closing(PrivateFolder()) as folder:
        socket = str(folder.path / "server")
        arguments = ["serve", model, "--uds", socket, "--log-level", "warning"]
        # Its own session: Ctrl-C stops an answer, not the server. By the end of the pipe the server learns that the
        # chat is gone, even if it was killed.
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo.cli.companion", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env=environment_of_a_model(os.environ),
        )
        try:
            with connect_unix(socket) as client:
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
    raise RemoteError(f"the server could not start (exit status {process.returncode}); its message is above")
