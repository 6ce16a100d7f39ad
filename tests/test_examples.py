"""The examples do what they say, with the default model. OCTAVO_TEST_OFFLINE=1 skips what needs it."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_sentiment() -> None:
    arguments = (str(EXAMPLES / "sentiment.py"), "--port", "0", "--grpc-port", "0")
    with serving(*arguments) as url, httpx.Client(trust_env=False, timeout=60) as client:

        def label(text: str) -> str:
            answer = client.post(f"{url}/v1/models/sentiment/predict", json={"text": text})
            return answer.raise_for_status().json()["label"]

        assert [label("I love it, it is great!"), label("slow and bad")] == ["positive", "negative"]


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
