"""The examples do what they say, with the default model. OCTAVO_TEST_OFFLINE=1 skips what needs it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.conftest import serving

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [
    pytest.mark.skipif(os.environ.get("OCTAVO_TEST_OFFLINE") == "1", reason="no network to fetch the model from"),
    pytest.mark.timeout(300),
]


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_chat_client(default_server: str) -> None:
    lines = run("chat_client.py", f"{default_server}/v1").splitlines()
    assert lines[0] == "> What is the capital of France?"
    assert "> And which river flows through it?" in lines


def test_offline_batch(default_server: str) -> None:  # which has fetched the model
    answers = [json.loads(line) for line in run("offline_batch.py").splitlines()]
    assert [answer["city"] for answer in answers[:2]] == ["Paris", "Rome"]
    assert "Paris" in answers[0]["answer"]  # what a model of this size says of it depends on the last bits
    assert all(0 < answer["tokens"] <= 24 for answer in answers)


def test_mounted(default_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import mounted  # type: ignore[import-not-found]

    with TestClient(mounted.app) as client:
        assert client.get("/ai/v1/models").json()["data"][0]["id"] == "smollm2:135m"
        assert client.get("/haiku", params={"about": "paper"}).json()["haiku"]


@pytest.fixture(scope="module")
def own(default_server: str) -> Iterator[httpx.Client]:  # which has fetched the model
    """All examples of code of one's own in one server, beside the default model."""
    files = ("sentiment.py", "moderated.py", "from_litserve.py", "from_bentoml.py")
    with (
        serving(*(str(EXAMPLES / each) for each in files), "smollm2:135m", "--port", "0", "--grpc-port", "0") as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


def predict(client: httpx.Client, model: str, **body: Any) -> Any:
    return client.post(f"/v1/models/{model}/predict", json=body).raise_for_status().json()


def test_sentiment(own: httpx.Client) -> None:
    labels = [predict(own, "sentiment", text=text)["label"] for text in ("I love it, it is great!", "slow and bad")]
    assert labels == ["positive", "negative"]


def test_moderated(own: httpx.Client) -> None:
    found = predict(own, "reply", question="The weather today is", tries=2)
    assert found["text"]
    assert (found["mood"] == "positive") or found["tries"] == 2
    assert predict(own, "sentiment", text=found["text"])["label"] == found["mood"]


def test_from_litserve(own: httpx.Client) -> None:
    assert predict(own, "engine", input=4.0) == {"output": 80.0}
    missing = own.post("/v1/models/engine/predict", json={})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "input")


def test_from_bentoml(own: httpx.Client) -> None:
    rain = "It rained. The rain was the rain of the year. I slept."
    assert predict(own, "summarization", text=rain) == "The rain was the rain of the year."
    assert predict(own, "summarize", texts=[rain, "One. Two three."]) == ["The rain was the rain of the year.", "One."]
    assert predict(own, "summarize", texts=[]) == []


def test_own_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import own_route  # type: ignore[import-not-found]

    with TestClient(own_route.app) as client:
        for path in ("/predict", "/v1/models/engine/predict"):
            assert client.post(path, json={"input": 4.0}).json() == {"output": 80.0}


def test_what_the_document_shows_is_what_the_examples_have() -> None:
    text = (EXAMPLES.parent / "docs" / "from-litserve-and-bentoml.md").read_text()
    files = "\n".join(re.sub(r"  # .*", "", each.read_text()) for each in EXAMPLES.glob("from_*.py"))
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        assert block in files


def test_several_models(default_server: str) -> None:
    file = EXAMPLES / "octavo.toml"
    with serving("--config", str(file), "--port", "0") as url, httpx.Client(trust_env=False, timeout=60) as client:
        served = [model["id"] for model in client.get(f"{url}/v1/models").json()["data"]]
        assert served == list(tomllib.loads(file.read_text())["deployments"])
        for name in served:
            body = {"model": name, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
            assert "Paris" in client.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]


def test_every_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    names = {path.stem for path in EXAMPLES.glob("*.py")} | {"several_models"}
    assert names <= tested
