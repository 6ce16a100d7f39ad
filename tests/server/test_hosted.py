"""`octavo serve app.py`: the code of somebody's own, from the command line to the answer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import octavo
from tests.conftest import serving
from tests.hosting.own_models import Classify, identity

SHOUTS = """
import octavo
from other import SIGN

@octavo.model(max_batch_size=8, instances=2, name="shouting")
class Shout:
    def load(self):
        self.sign = SIGN

    def predict(self, text: list[str]) -> list[str]:
        return [each.upper() + self.sign for each in text]
"""

APP = (
    SHOUTS
    + """
import os, time

@octavo.model
def pid(wait: float = 0.0, begun: str = "") -> int:
    if begun:
        open(begun, "w").close()
    time.sleep(wait)
    return os.getpid()

@octavo.model
def spell(prompt: str):
    yield from prompt

@octavo.model
def clever(prompt: str, more: int = 1) -> str:
    return prompt * more

@octavo.model(response_cache=True)
def now(place: str = "here") -> int:
    return time.monotonic_ns()
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own")
    (path / "app.py").write_text(APP)
    (path / "other.py").write_text("SIGN = '!'\n")
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(str(folder / "app.py"), "--port", "0", "--grpc-port", "0", "--cache-config=local,size=1MiB") as found:
        yield found


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        yield client


def test_all_models_of_a_file_are_served(http: httpx.Client) -> None:
    assert [each["id"] for each in http.get("/v1/models").json()["data"]] == [
        "shouting",
        "pid",
        "spell",
        "clever",
        "now",
    ]
    assert http.get("/health").json()["status"] == "ok"


def test_predict(http: httpx.Client) -> None:
    assert http.post("/v1/models/shouting/predict", json={"text": "hi"}).json() == "HI!"
    missing = http.post("/v1/models/shouting/predict", json={})
    assert missing.status_code == 400
    assert missing.json()["error"]["param"] == "text"
    unknown = http.post("/v1/models/nothing/predict", json={})
    assert unknown.status_code == 404


def test_a_generator_s_results_are_events(http: httpx.Client) -> None:
    answer = http.post("/v1/models/spell/predict", json={"prompt": "ab"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == 'data: "a"\n\ndata: "b"\n\n'


def test_generate_is_for_models_of_one_prompt(http: httpx.Client) -> None:
    def generate(**body: object) -> httpx.Response:
        return http.post("/generate", json=body)

    assert generate(model="clever", prompt="ab", more=2).json() == {"text": "abab"}
    assert generate(model="spell", prompt="ab").json() == {"text": "ab"}
    assert generate(model="spell", prompt="ab", stream=True).text == (
        'data: {"text":"a"}\n\ndata: {"text":"b"}\n\ndata: [DONE]\n\n'
    )
    wrong = generate(model="clever", text="ab")
    assert wrong.status_code == 400
    assert "prompt" in wrong.json()["detail"]
    assert generate(model="nothing", prompt="ab").status_code == 404


def test_language_models_routes_say_what_these_models_are(http: httpx.Client) -> None:
    body = {"model": "shouting", "messages": [{"role": "user", "content": "hi"}]}
    refused = http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "is no language model" in refused.json()["error"]["message"]


def test_the_documentation_has_the_bodies(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    body = paths["/v1/models/clever/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["more"] == {"default": 1, "title": "More", "type": "integer"}
    assert body["required"] == ["prompt"]


def test_a_process_that_is_killed_is_replaced(http: httpx.Client, tmp_path: Path) -> None:
    first = http.post("/v1/models/pid/predict", json={}).json()
    begun = tmp_path / "begun"
    with ThreadPoolExecutor() as pool:
        computed = pool.submit(http.post, "/v1/models/pid/predict", json={"wait": 20, "begun": str(begun)})
        while not begun.exists():
            time.sleep(0.01)
        os.kill(first, signal.SIGKILL)
        failed = computed.result()
    assert failed.status_code == 500
    assert "SIGKILL" in failed.json()["error"]["message"]
    assert failed.json()["error"]["type"] == "server_error"
    assert http.post("/v1/models/pid/predict", json={}).json() != first
    assert http.post("/v1/models/shouting/predict", json={"text": "hi"}).json() == "HI!"


def test_code_is_loaded_again_when_it_changes(tmp_path: Path) -> None:
    code, other = tmp_path / "app.py", tmp_path / "other.py"
    code.write_text(SHOUTS)
    other.write_text("SIGN = '!'\n")
    with (
        serving(str(code), "--reload", "--port", "0", "--grpc-port", "0") as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):

        def said() -> str:
            answer = client.post("/v1/models/shouting/predict", json={"text": "hi"})
            return answer.raise_for_status().json()  # type: ignore[no-any-return]

        assert said() == "HI!"
        other.write_text("SIGN = '?'\n")
        while said() != "HI?":
            time.sleep(0.05)
        code.write_text("1 / 0")  # which stays without effect
        time.sleep(1)
        code.write_text(SHOUTS.replace("upper", "lower"))
        while said() != "hi?":
            time.sleep(0.05)


def test_whoever_asks_the_same_may_get_the_same(http: httpx.Client) -> None:
    def now(**body: str) -> int:
        return http.post("/v1/models/now/predict", json=body).raise_for_status().json()  # type: ignore[no-any-return]

    assert now() == now()
    assert now(place="there") == now(place="there") > now()
    assert http.get("/v2/models/now/config").json()["response_cache"] == {"enable": True}
    seen = http.get("/v2/models/now/stats").json()["model_stats"][0]["inference_stats"]
    assert (seen["cache_hit"]["count"], seen["cache_miss"]["count"]) == (3, 2)


def test_own_code_in_somebody_s_application() -> None:
    cache = {"response_cache": True, "cache_config": ["local,size=1MiB"]}
    ai = octavo.create_app(Classify, identity, api_key=["secret"], max_queue_size=7, **cache)
    app = FastAPI(lifespan=ai.lifespan)
    app.mount("/ai", ai)
    with TestClient(app, headers={"Authorization": "Bearer secret"}) as client:
        answer = client.post("/ai/v1/models/classify/predict", json={"text": "hello there"})
        assert answer.json() == {"label": "long", "score": 1.1}
        assert client.post("/ai/v1/models/classify/predict", json={"text": "hello there"}).json() == answer.json()
        seen = client.get("/ai/v2/models/classify/stats").json()["model_stats"][0]["inference_stats"]
        assert (seen["cache_hit"]["count"], seen["compute_infer"]["count"]) == (1, 1)
        assert "nv_cache_num_hits 1.0" in client.get("/ai/metrics").text
        assert client.get("/ai/v2/models/identity").json()["inputs"][0]["datatype"] == "FP32"
        assert client.get("/ai/v2/models/identity/config").json()["max_batch_size"] == 8
        assert client.post("/ai/v1/models/classify/predict", json={}, headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def predict(: pass", "is no Python that can be read"),
        ("x = 1", "has no model"),
        ("@octavo.model\nclass A: pass", "has no method `predict`"),
        (
            "@octavo.model(response_cache=True)\nclass A:\n  def predict(self, x: str):\n    yield x",
            "response_cache is for models with one result, and",
        ),
        ("import sys; sys.exit(7)", "it called sys.exit(7)"),
        ("@octavo.model\nclass A:\n  def load(self): 1 / 0\n  def predict(self, x: int): pass", "ZeroDivisionError"),
    ],
)
def test_code_that_cannot_be_served(tmp_path: Path, code: str, message: str) -> None:
    path = tmp_path / "app.py"
    model = "" if "@" in code or "x = 1" in code or "(:" in code else ":A"
    path.write_text(f"import octavo\n{code}\n")
    command = [sys.executable, "-m", "octavo", "serve", f"{path}{model}", "--port", "0", "--grpc-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("octavo: ")
    assert message in last
