"""Deployments are loaded, replaced and unloaded while the server runs."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.tiny import write_tiny_model
from tests.worker.servers import Server, serving

ADMIN = {"authorization": "Bearer admin-key"}
CLIENT = {"authorization": "Bearer client-key"}
PROMPT = {"prompt": "the quick", "max_tokens": 12, "seed": 7, "ignore_eos": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that say different things, one whose weights are cut short, and one without a tokenizer."""
    root = tmp_path_factory.mktemp("models")
    models = {
        name: write_tiny_model(root / name, seed=seed) for seed, name in enumerate(("one", "two", "three", "cut"))
    }
    weights = models["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    models["mute"] = write_tiny_model(root / "mute")
    (models["mute"] / "tokenizer.json").write_text("{}")
    return models


@pytest.fixture(scope="module")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("config") / "octavo.toml"
    config.write_text(
        '[server]\napi_key = "client-key"\nadmin_api_key = "admin-key"\napi_workers = 2\n'
        '[server.keys.batch]\nkey = "batch-key"\npriorities = [10, 20]\n'
        f"[deployments.first]\nmodel = '{models['one']}'\nkv_cache_memory_bytes = '1MiB'\nmax_num_seqs = 8\n"
    )
    with serving("--config", config) as server:
        yield server


@pytest.fixture
def http(server: Server, models: dict[str, Path]) -> Iterator[httpx.Client]:
    """An administrator. Every test finds, and leaves, one deployment with the model "one"."""
    with httpx.Client(base_url=server.url, timeout=60, headers=ADMIN) as client:
        yield client
        if listed(client) != [("first", str(models["one"]), "ready")]:
            assert load(client, "first", models["one"], max_num_seqs=8).status_code == 200
            for name in {name for name, *_ in listed(client)} - {"first"}:
                client.delete(f"/admin/deployments/{name}")
        eventually(lambda: [name for name, *_ in listed(client)] == ["first"])


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def load(http: httpx.Client, name: str, model: Path | str, **settings: object) -> httpx.Response:
    settings = {"kv_cache_memory_bytes": 2**20, **settings}
    return http.post("/admin/deployments", json={"name": name, "model": str(model), "settings": settings})


def listed(http: httpx.Client) -> list[tuple[str, str, str]]:
    deployments = http.get("/admin/deployments").json()["deployments"]
    return [(each["name"], each["model"], each["state"]) for each in deployments]


def complete(url: str, name: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=PROMPT | {"model": name} | fields, headers=CLIENT, timeout=60)


def text(url: str, name: str) -> str:
    response = complete(url, name)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def test_a_further_deployment_is_loaded_and_unloaded(
    http: httpx.Client, server: Server, models: dict[str, Path]
) -> None:
    assert complete(server.url, "second").status_code == 404
    loaded = load(http, "second", models["two"], served_model_name=["other"], max_num_seqs=3)
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["state"] == "ready"
    assert loaded.json()["names"] == ["second", "other"]
    assert loaded.json()["engine"]["max_num_seqs"] == 3
    # However often it is asked: there are two frontends.
    assert {text(server.url, name) for name in ("second", "other") * 4} == {text(server.url, "second")}
    assert text(server.url, "first") != text(server.url, "second")
    assert load(http, "first", models["three"], max_num_seqs=8).status_code == 200  # it stays the first
    unnamed = httpx.post(f"{server.url}/v1/completions", json=PROMPT, headers=CLIENT, timeout=60).json()
    assert unnamed["model"] == "first"
    cards = httpx.get(f"{server.url}/v1/models", headers=CLIENT).json()["data"]
    assert [card["id"] for card in cards] == ["first", "second", "other"]
    assert httpx.get(f"{server.url}/ready").json()["deployments"] == {"first": "ready", "second": "ready"}
    assert 'vllm:num_requests_running{engine="0",model_name="second"}' in (
        httpx.get(f"{server.url}/metrics", headers=CLIENT).text
    )
    assert http.delete("/admin/deployments/second").status_code == 200
    assert {complete(server.url, "second").status_code for _ in range(6)} == {404}
    eventually(lambda: len(server.find("octavo.engine.process")) == 1)
    assert httpx.get(f"{server.url}/ready").json()["deployments"] == {"first": "ready"}


def test_a_newer_version_takes_over_without_a_refusal(
    http: httpx.Client, server: Server, models: dict[str, Path]
) -> None:
    before = text(server.url, "first")
    stop = threading.Event()

    def ask() -> list[str]:
        said = []
        while not stop.is_set():
            said.append(text(server.url, "first"))
        return said

    def stream() -> str:
        fields = PROMPT | {"model": "first", "max_tokens": 200, "stream": True}
        pieces = []
        with httpx.stream("POST", f"{server.url}/v1/completions", json=fields, headers=CLIENT, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event
                    pieces += [choice["text"] for choice in event["choices"]]
                    begun.set()
        assert line == "data: [DONE]" or line == ""
        return "".join(pieces)

    whole = complete(server.url, "first", max_tokens=200).json()["choices"][0]["text"]
    begun = threading.Event()
    with ThreadPoolExecutor() as pool:
        askers = [pool.submit(ask) for _ in range(3)]
        running = pool.submit(stream)
        assert begun.wait(30)
        loaded = load(http, "first", models["two"], max_num_seqs=8)
        after = text(server.url, "first")
        stop.set()
        said = [answer for asker in askers for answer in asker.result()]
        assert running.result() == whole  # on the version that it began with
    assert loaded.json()["version"] >= 2, loaded.text
    assert before != after
    assert set(said) <= {before, after}
    eventually(lambda: len(server.find("octavo.engine.process")) == 1)
    assert listed(http) == [("first", str(models["two"]), "ready")]
    assert {text(server.url, "first") for _ in range(4)} == {after}


def test_a_stream_holds_the_version_that_it_began_with(
    http: httpx.Client, server: Server, models: dict[str, Path]
) -> None:
    fields = PROMPT | {"model": "first", "max_tokens": 240, "stream": True, "n": 8}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=fields, headers=CLIENT, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        assert load(http, "first", models["three"], max_num_seqs=8).status_code == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"
    eventually(lambda: listed(http) == [("first", str(models["three"]), "ready")])


@pytest.mark.parametrize(
    ("model", "settings", "status", "words"),
    [
        ("no-such-model", {}, 400, ["no-such-model"]),
        ("/no/such/folder", {}, 400, ["no such file"]),
        ("two", {"max_num_seq": 1}, 400, ["settings.max_num_seq is unknown", "max_num_seqs"]),
        ("two", {"max_num_seqs": "many"}, 400, ["max_num_seqs is 'many'", "settings.max_num_seqs"]),
        ("two", {"port": 1}, 400, ["settings.port is unknown"]),
        ("two", {"max_model_len": 9999}, 400, ["max_model_len 9999 is more than the 256 positions"]),
        ("two", {"kv_cache_memory_bytes": "4000GiB"}, 400, ["bytes of memory together"]),
        ("two", {"served_model_name": ["spare"]}, 400, ["'spare' is a name of two deployments"]),
        ("cut", {}, 400, ["model.safetensors"]),
        ("mute", {}, 500, ["tokenizer"]),
    ],
)
def test_an_error_leaves_the_old_version_serving(
    http: httpx.Client,
    server: Server,
    models: dict[str, Path],
    model: str,
    settings: dict[str, object],
    status: int,
    words: list[str],
) -> None:
    if "served_model_name" in settings:
        load(http, "spare", models["three"])
    before, there = text(server.url, "first"), listed(http)
    refused = load(http, "first", models.get(model, model), **settings)
    assert refused.status_code == status, refused.text
    message = refused.json()["error"]["message"]
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert "\n" not in message
    assert text(server.url, "first") == before
    assert listed(http) == there


def test_a_frontend_that_dies_meanwhile_does_not_hold_up_the_others(
    server: Server, models: dict[str, Path], http: httpx.Client
) -> None:
    doomed = server.frontends[0]
    doomed.kill()  # its heir begins with the old version, and learns of the new one
    with httpx.Client(
        base_url=server.url, headers=ADMIN, timeout=60, transport=httpx.HTTPTransport(retries=5)
    ) as other:
        assert load(other, "first", models["two"], max_num_seqs=8).status_code == 200
    eventually(lambda: len(server.find("octavo.engine.process")) == 1)
    eventually(lambda: len(server.find("octavo.server.process")) == 2)
    assert len({text(server.url, "first") for _ in range(8)}) == 1
    doomed = server.frontends[0]
    doomed.kill()  # its heir begins with the new version
    eventually(lambda: doomed.pid not in psutil.pids() and len(server.find("octavo.server.process")) == 2)
    assert len({text(server.url, "first") for _ in range(8)}) == 1


def test_one_change_at_a_time_and_a_signal_does_not_wait_for_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as pool:  # whoever fetches there waits
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
        flags = ("--admin-api-key", "admin-key", "--kv-cache-memory-bytes", "1MiB")
        with (
            serving(tiny_model, *flags) as server,
            httpx.Client(base_url=server.url, timeout=60, headers=ADMIN) as http,
        ):
            loading = pool.submit(load, http, "slow", "someone/slow")
            eventually(lambda: http.delete("/admin/deployments/none").status_code == 409)
            refused = load(http, "other", tiny_model)
            assert refused.status_code == 409
            assert "slow is being changed" in refused.json()["error"]["message"]
            assert httpx.get(f"{server.url}/ready").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            assert loading.result().status_code == 503
            assert server.process.wait(60) == 0
            assert server.process.stderr is not None
            assert "Traceback" not in server.process.stderr.read()


def test_the_last_deployment_stays(http: httpx.Client) -> None:
    refused = http.delete("/admin/deployments/first")
    assert refused.status_code == 409
    assert "only deployment" in refused.json()["error"]["message"]
    assert http.delete("/admin/deployments/none").status_code == 404


def test_bodies_that_are_wrong_are_refused(http: httpx.Client) -> None:
    for body in (
        {},
        {"name": "x"},
        {"name": "", "model": "m"},
        {"name": " ", "model": "m"},
        {"name": "x", "model": ""},
        {"name": "x\n", "model": "m"},
        {"name": "x", "model": 5},
        {"name": "x", "model": "m", "setings": {}},
        {"name": "x", "model": "m", "settings": []},
        {"name": "x" * 1000, "model": "m"},
        {"name": "x", "model": "m\0"},
        {"name": "x", "model": "m", "settings": {"threads": [1]}},
        {"name": "x", "model": "m", "settings": {"threads": 10**400}},
    ):
        response = http.post(
            "/admin/deployments", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert response.status_code == 400, (body, response.text)
        assert response.json()["error"]["message"]


def test_the_keys_open_what_they_are_for(server: Server) -> None:
    with httpx.Client(base_url=server.url) as plain:
        for headers, of_clients, of_administrators in (({}, 401, 401), (CLIENT, 200, 401), (ADMIN, 401, 200)):
            assert plain.get("/v1/models", headers=headers).status_code == of_clients
            assert plain.get("/admin/deployments", headers=headers).status_code == of_administrators
        assert plain.get("/health").status_code == 200


def test_a_named_key_has_its_range_of_priorities(server: Server) -> None:
    batch = {"authorization": "Bearer batch-key"}
    fields = PROMPT | {"model": "first"}
    for priority, status in ((10, 200), (None, 200), (0, 400)):
        answer = httpx.post(f"{server.url}/v1/completions", json=fields | {"priority": priority}, headers=batch)
        assert answer.status_code == status
    assert "from 10 to 20" in answer.json()["error"]["message"]


def test_without_a_key_there_is_no_administration(tiny_model: Path) -> None:
    with serving(tiny_model) as server, httpx.Client(base_url=server.url) as plain:
        assert plain.get("/admin/deployments").status_code == 404
        assert plain.post("/admin/deployments", json={"name": "x", "model": "y"}).status_code == 404
        assert "/admin/deployments" not in plain.get("/openapi.json").json()["paths"]
