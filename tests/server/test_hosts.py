"""Under which names a server answers: a page of another site must not reach one on its reader's machine."""

import socket
from pathlib import Path

import httpx
import pytest

from octavo.deployments import Deployments
from octavo.errors import ConfigError
from octavo.server.app import create_app
from octavo.server.hosts import local_hosts
from octavo.server.listener import bind, bind_unix
from octavo.server.settings import ServerSettings
from tests.server.fake import FakeEngine, running, served
from tests.server.raw import connect, read_answer

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
PATHS = ("/health", "/v1/models", "/metrics", "/docs", "/nope")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "octavo.localhost:1",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.5.5.5",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
        "192.168.1.7:8000",
        "[fe80::1%eth0]:80",
        "host.docker.internal:8000",
        socket.gethostname(),
    ],
)
def test_names_and_addresses_of_this_machine(http: httpx.Client, host: str) -> None:
    for path in PATHS:
        assert http.get(path, headers={"host": host}).status_code in (200, 404)
    assert http.post(CHAT, json=BODY, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example",
        "internal",
    ],
)
def test_names_of_other_sites(http: httpx.Client, engine: FakeEngine, host: str) -> None:
    for method, path in (*(("GET", path) for path in PATHS), ("POST", CHAT), ("OPTIONS", CHAT), ("HEAD", "/health")):
        answer = http.request(method, path, headers={"host": host}, json=BODY if method == "POST" else None)
        assert answer.status_code == 403, path
        if method != "HEAD":
            error = answer.json()["error"]
            assert error["code"] == "host_not_allowed"
            assert f"--allowed-hosts {host.removesuffix(':8000')}." in error["message"]
        assert "access-control-allow-origin" not in answer.headers
    assert engine.requests == []


def test_whole_urls_as_targets(url: str) -> None:
    """The name in the target counts, whatever the header says."""
    for target, host, status in (
        ("http://evil.example/version", "localhost", 403),
        ("http://localhost/version", "evil.example", 200),
        ("http://127.0.0.1:8000", "localhost", 404),
    ):
        with connect(url) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert read_answer(connection).status == status


def test_no_name_at_all(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        assert read_answer(connection).status == 200


def test_allowed_hosts(engine: FakeEngine) -> None:
    settings = ServerSettings(allowed_hosts=("llm.example", "*.Team.example"), allowed_origins=("*",))
    with running(settings, served(engine)) as url:
        for host, status in (
            ("llm.example", 200),
            ("LLM.example.:443", 200),
            ("a.team.example", 200),
            ("127.0.0.1", 200),
            ("team.example", 403),
            ("x.llm.example", 403),
            ("xteam.example", 403),
            ("localhost", 403),
        ):
            assert httpx.get(f"{url}/version", headers={"host": host}).status_code == status, host
    with running(ServerSettings(allowed_hosts=("*",)), served(engine)) as url:
        assert httpx.get(f"{url}/version", headers={"host": "any.example"}).status_code == 200


def test_defaults_by_address(tmp_path: Path) -> None:
    for listener, is_local in (
        (bind("127.0.0.1", 0), True),
        (bind("0.0.0.0", 0), False),
        (bind_unix(str(tmp_path / "socket")), False),
    ):
        with listener:
            assert ("localhost" in local_hosts(listener)) == is_local
    if socket.has_ipv6:
        with bind("::1", 0) as listener:
            assert "localhost" in local_hosts(listener)


@pytest.mark.parametrize("host", ["http://x.example", "x.example:80", "x.example/", "*x.example", "a,b", "[::1]"])
def test_what_is_no_host_is_refused_at_the_start(engine: FakeEngine, host: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts") as caught:
        create_app(ServerSettings(allowed_hosts=(host,)), Deployments([served(engine)]))
    assert host in str(caught.value)


def test_what_pages_may_send_without_asking_is_refused(http: httpx.Client, engine: FakeEngine) -> None:
    """Browsers send such requests of other sites without a preflight: they must not start anything."""
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        headers = {"origin": "https://evil.example", "content-type": content_type}
        answer = http.post(CHAT, content=b'{"messages":[{"role":"user","content":"hi"}]}', headers=headers)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers
    assert engine.requests == []
