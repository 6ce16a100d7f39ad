"""`octavo serve app.py` with ensembles: of models of the same file, of a repository, and of language models."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from fastapi import FastAPI
from fastapi.testclient import TestClient

import octavo
from octavo.errors import ConfigError
from tests.hosting.own_ensembles import judged
from tests.hosting.own_models import Classify
from tests.hosting.triton.repositories import SCALE, onnx_scale, write_model
from tests.tiny import write_tiny_model

APP = """
import asyncio, os, time
from collections.abc import AsyncIterator
import octavo
from pydantic import BaseModel

TINY = octavo.Model("tiny", outputs=["text_output", "num_output_tokens"])

class Answer(BaseModel):
    text: str
    tokens: int
    label: str
    scaled: list[float]

@octavo.model(max_batch_size=8)
def tokenise(text: list[str]) -> list[list[str]]:
    return [each.split() for each in text]

@octavo.model
def classify(text: str, words: int) -> str:
    if words > 5:
        raise octavo.InvalidRequest(f"{words} words are too many")
    return "long" if len(text) > 40 else "short"

@octavo.ensemble
async def answer(
    question: str,
    max_tokens: int = 8,
    *,
    tokenise: octavo.Model,
    classify: octavo.Model,
    scale: octavo.Model,
    tiny: octavo.Model = TINY,
) -> Answer:
    \"\"\"Tokenises, generates and classifies.\"\"\"
    words = await tokenise(text=question)
    how = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    said, scaled = await asyncio.gather(
        tiny(text_input=question, exclude_input_in_output=True, sampling_parameters=how),
        scale(x=[1.0, 2.0, len(words)]),
    )
    label = await classify(text=said["text_output"], words=len(words))
    tokens = said["num_output_tokens"]
    return Answer(text=said["text_output"], tokens=tokens, label=label, scaled=scaled["y"].tolist())

@octavo.ensemble
async def tell(prompt: str, max_tokens: int = 8, *, tiny: octavo.Model) -> AsyncIterator[str]:
    how = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    async for piece in tiny(text_input=prompt, stream=True, sampling_parameters=how):
        yield piece["text_output"]
"""


NEEDS = """
import octavo

@octavo.model
def shout(text: str) -> str:
    return text.upper()

@octavo.ensemble
async def whole(text: str, *, shout: octavo.Model) -> str:
    return await shout(text=text)
"""

PATIENT = (
    NEEDS
    + """
import asyncio, os

@octavo.model
async def waits(begun: str, ended: str) -> int:
    open(begun, "w").close()
    try:
        while not os.path.exists(ended + ".wanted"):
            await asyncio.sleep(0.01)
    finally:
        open(ended, "w").close()
    return 1

@octavo.ensemble
async def patient(begun: str, ended: str, *, waits: octavo.Model, shout: octavo.Model) -> str:
    first = await waits(begun=begun, ended=ended)
    return await shout(text=f"{first}a")
"""
)


class Server:
    """A server in a process. Attributes: url, grpc: where it listens. said: its log."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "octavo", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"ready on (http://\S+)(?: and (\S+) \(gRPC\))?", line):
                break
        else:
            pytest.fail("".join(self.said))
        self.url, self.grpc = found[1], found[2]
        self._reading = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()), daemon=True)
        self._reading.start()

    def predict(self, model: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/models/{model}/predict", json=body, timeout=30)

    def says(self, what: str) -> bool:
        return any(what in line for line in self.said)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._reading.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ensembles")
    (path / "app.py").write_text(APP)
    write_tiny_model(path / "tiny")
    write_model(path / "repository", "scale", SCALE, v1=onnx_scale(3))
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    repository = ("--model-repository", "repository", "--model-control-mode", "explicit", "--load-model", "scale")
    started = Server(folder, "app.py", "tiny", *repository, "--api-workers", "2")
    try:
        yield started
    finally:
        started.close()


def said_by_the_model(server: Server, prompt: str, max_tokens: int) -> str:
    """What the language model says itself."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"][0]["text"]  # type: ignore[no-any-return]


def text(name: str, value: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], object))
    return tensor


def test_models_of_all_kinds_are_steps(server: Server) -> None:
    expected = {
        "text": said_by_the_model(server, "the quick brown fox", 8),
        "tokens": 8,
        "label": "short",
        "scaled": [3.0, 6.0, 12.0],
    }
    for _ in range(4):  # whichever frontend it is
        assert server.predict("answer", question="the quick brown fox").json() == expected
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer("answer", [text("question", "the quick brown fox")])
    assert result.as_numpy("text")[0].decode() == expected["text"]
    assert result.as_numpy("scaled").tolist() == expected["scaled"]


def test_what_a_language_model_says_comes_in_pieces(server: Server) -> None:
    whole = said_by_the_model(server, "the quick", 6)
    answer = server.predict("tell", prompt="the quick", max_tokens=6)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.count("data: ") > 1
    generated = httpx.post(f"{server.url}/generate", json={"model": "tell", "prompt": "the quick", "max_tokens": 6})
    assert generated.json() == {"text": whole}
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        results: Queue[Any] = Queue()
        client.start_stream(lambda result, error: results.put(error or result))
        client.async_stream_infer("tell", [text("prompt", "the quick")], enable_empty_final_response=True)
        pieces = []
        while not (result := results.get(timeout=30)).get_response().parameters["triton_final_response"].bool_param:
            pieces.append(result.as_numpy("output")[0].decode())
        client.stop_stream()
    assert "".join(pieces) == said_by_the_model(server, "the quick", 8)


def test_it_is_described_as_any_model(server: Server) -> None:
    description = httpx.get(f"{server.url}/openapi.json").json()
    operation = description["paths"]["/v1/models/answer/predict"]["post"]
    assert operation["description"] == "Tokenises, generates and classifies."
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"].keys() == {"question", "max_tokens"}
    about = httpx.get(f"{server.url}/v2/models/answer").json()
    assert [each["name"] for each in about["inputs"]] == ["question", "max_tokens"]


def test_errors_of_steps_have_their_status(server: Server) -> None:
    refused = server.predict("answer", question="one two three four five six")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "in ensemble 'answer', step 3 of model 'classify': 6 words are too many"
    )
    wrong = server.predict("answer", question="one", max_tokens=0)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["message"].startswith(
        "in ensemble 'answer', step 1 of model 'tiny': 'sampling_parameters' has 'max_tokens'"
    )


def test_it_is_ready_as_long_as_its_models_are_there(server: Server) -> None:
    def is_ready() -> bool:
        return httpx.get(f"{server.url}/v2/models/answer/ready").status_code == 200

    assert is_ready()
    httpx.post(f"{server.url}/v2/repository/models/scale/unload", json={}).raise_for_status()
    assert not is_ready()
    missing = server.predict("answer", question="one")
    assert missing.status_code == 503
    assert missing.json()["error"]["message"] == (
        "in ensemble 'answer', step 2 of model 'scale': there is no such model on this server"
    )
    httpx.post(f"{server.url}/v2/repository/models/scale/load", json={}).raise_for_status()
    assert is_ready()
    assert server.predict("answer", question="one").status_code == 200


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def test_what_is_computed_when_a_client_leaves_and_when_the_server_stops(tmp_path: Path) -> None:
    """Of a client that leaves, nothing; else all that is in flight, with the steps that are still to come."""
    (tmp_path / "app.py").write_text(PATIENT)
    server = Server(tmp_path, "app.py", "--grpc-port", "0")
    places = [{"begun": str(tmp_path / f"begun{each}"), "ended": str(tmp_path / f"ended{each}")} for each in range(2)]

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            task = asyncio.create_task(client.post("/v1/models/patient/predict", json=places[0]))
            await asyncio.to_thread(eventually, Path(places[0]["begun"]).exists)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(leave())
    eventually(Path(places[0]["ended"]).exists)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(server.predict, "patient", **places[1])
        eventually(Path(places[1]["begun"]).exists)
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: server.says("stopping"))
        Path(f"{places[1]['ended']}.wanted").touch()
        assert answer.result().json() == "1A"
    assert server.process.wait(60) == 0
    server.close()


def test_a_model_that_is_missing_at_the_start(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(NEEDS.replace("*, shout:", "*, whisper:"))
    command = [sys.executable, "-m", "octavo", "serve", str(app), "--port", "0", "--grpc-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == (
        "octavo: the ensemble 'whole' asks for a model 'whisper', which is not served; there are: shout"
    )


def test_code_that_is_loaded_again(tmp_path: Path) -> None:
    """Its models may be others then; if they are not there, what is served stays."""
    app = tmp_path / "app.py"
    app.write_text(NEEDS)
    server = Server(tmp_path, "app.py", "--reload", "--grpc-port", "0")

    def said() -> str:
        return server.predict("whole", text="a").raise_for_status().json()  # type: ignore[no-any-return]

    try:
        assert said() == "A"
        app.write_text(NEEDS.replace("*, shout:", "*, whisper:"))
        eventually(lambda: server.says("could not be loaded: the ensemble 'whole' asks for a model 'whisper', which"))
        assert said() == "A"
        app.write_text(NEEDS.replace("text.upper()", "text * 2").replace("await shout", "'!' + await shout"))
        eventually(lambda: said() == "!aa")
    finally:
        server.close()


def test_an_ensemble_in_somebody_s_application(tiny_model: Path) -> None:
    ai = octavo.create_app(Classify, judged, tiny_model)
    app = FastAPI(lifespan=ai.lifespan)
    app.mount("/ai", ai)
    with TestClient(app) as client:
        answer = client.post("/ai/v1/models/judged/predict", json={"prompt": "the quick", "llm": str(tiny_model)})
        assert answer.json().keys() == {"label", "score"}
    alone = FastAPI(lifespan=octavo.create_app(judged).lifespan)
    asks = "the ensemble 'judged' asks for a model 'classify', which is not served"
    with pytest.raises(ConfigError, match=asks), TestClient(alone):
        pass
