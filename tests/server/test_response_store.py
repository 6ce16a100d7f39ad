"""Responses are kept within bounds, and a database of them survives its server."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.server.response_store import NotStored, ResponseStore, StoredResponse, StoreFull, StoreLimits
from octavo.server.settings import ServerSettings
from tests.properties import examples
from tests.server.conftest import eventually
from tests.server.fake import MODEL, FakeEngine, running, served

HOUR = 3600.0


class Kept:
    """A store, called without a loop, and its clock."""

    def __init__(self, path: str | None = None, **limits: Any) -> None:
        self.now = 1e9
        self.loop = asyncio.new_event_loop()
        usual: dict[str, Any] = {"responses": 100, "bytes": 10**6, "seconds": HOUR, "conversation_bytes": 10**5}
        self.store = ResponseStore(path, StoreLimits(**(usual | limits)), clock=lambda: self.now)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def add(self, name: str, *, tenant: str = "", size: int = 200, previous: str | None = None, **more: Any) -> None:
        head = json.dumps({"id": name, "output": [{"id": f"msg_{name}"}], "status": "completed"})
        response = head[:-1] + " " * max(size - len(head) - 2, 0) + "}"
        self.run(
            self.store.add(
                StoredResponse(
                    tenant=tenant,
                    id=name,
                    previous=previous,
                    response=response.encode(),
                    input=b"[]",
                    created=self.now,
                    item_ids=[f"msg_{name}"],
                    **more,
                )
            )
        )

    def has(self, name: str, tenant: str = "") -> bool:
        try:
            self.run(self.store.get(tenant, name))
        except NotStored:
            return False
        return True

    def conversation(self, name: str) -> list[str]:
        return [each.id for each in self.run(self.store.conversation("", name))]


def test_what_was_not_used_for_longest_goes_first() -> None:
    kept = Kept(responses=3)
    kept.add("a")
    kept.add("b", previous="a")
    for name in ("c", "d"):
        kept.now += 1
        assert kept.conversation("b") == ["a", "b"]  # which uses both
        kept.now += 1
        kept.add(name)
    assert [name for name in "abcd" if kept.has(name)] == ["a", "b", "d"]


def test_bytes_are_bounded() -> None:
    kept = Kept(bytes=1000)
    for name in "abcdef":
        kept.now += 1
        kept.add(name, size=300)
    assert [name for name in "abcdef" if kept.has(name)] == ["d", "e", "f"]
    with pytest.raises(StoreFull, match="1,001 bytes has no room"):
        kept.add("g", size=1001)
    assert not kept.has("g")


def test_what_is_worked_on_stays() -> None:
    kept = Kept(responses=2)
    kept.add("a", beat=kept.now)
    for name in "bc":
        kept.now += 1
        kept.add(name)
    assert [name for name in "abc" if kept.has(name)] == ["a", "c"]
    assert kept.run(kept.store.beat("", "a"))
    kept.run(kept.store.delete("", "a"))
    assert not kept.run(kept.store.beat("", "a"))


def test_what_is_old_is_gone() -> None:
    kept = Kept(seconds=HOUR)
    kept.add("a")
    kept.now += HOUR - 1
    kept.add("b", previous="a")
    assert kept.conversation("b") == ["a", "b"]
    kept.now += 2
    assert [name for name in "ab" if kept.has(name)] == ["b"]
    with pytest.raises(NotStored) as gone:
        kept.conversation("b")
    assert gone.value.id == "a"
    assert kept.run(kept.store.items("", ["msg_a", "msg_b", "msg_c"])).keys() == {"msg_b"}


def test_long_conversations_are_refused() -> None:
    kept = Kept(conversation_bytes=700)
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "c")):
        kept.add(name, previous=previous)
    assert kept.conversation("c") == ["a", "b", "c"]
    with pytest.raises(StoreFull, match="more than 700 bytes"):
        kept.conversation("d")


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "delete", "wait", "use"]), st.integers(0, 9), st.integers(100, 700)), max_size=40
)


@given(steps=STEPS)
@examples(30)
def test_bounds_hold_whatever_is_done(steps: list[tuple[str, int, int]]) -> None:
    kept = Kept(bytes=1500, responses=4, seconds=1000.0)
    sizes: dict[str, int] = {}
    for step, number, size in steps:
        name = f"r{number}"
        if step == "wait":
            kept.now += size
        elif step == "add" and not kept.has(name):
            kept.add(name, size=size)
            sizes[name] = size
            assert kept.has(name)
        elif step == "delete" and kept.has(name):
            kept.run(kept.store.delete("", name))
        elif step == "use" and kept.has(name):
            assert kept.conversation(name) == [name]
        there = [each for each in sizes if kept.has(each)]
        assert len(there) <= 4
        assert sum(sizes[each] for each in there) <= 1500
    kept.store.close()
    kept.loop.close()


def test_others_databases_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    text = tmp_path / "text"
    text.write_text("This is no database, but a text that is long enough to be read as the head of one. " * 3)
    for path, words in ((other, "something else"), (text, "not a database"), (tmp_path / "no" / "x", "No such file")):
        with pytest.raises(ConfigError, match=words):
            Kept(str(path))
    assert text.read_text().startswith("This is no database")


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**({"model": MODEL, "input": "Well?"} | fields))


def test_servers_share_a_database_that_outlives_them(engine: FakeEngine, tmp_path: Path) -> None:
    settings = ServerSettings(store=str(tmp_path / "responses.db"))
    with running(settings, served(engine)) as one, running(settings, served(engine)) as other:
        first = ask(client_of(one))
        assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
        second = ask(client_of(other), previous_response_id=first.id)
        assert client_of(one).responses.retrieve(second.id).to_dict() == second.to_dict()
        engine.hold = True
        waiting = ask(client_of(one), background=True)
        eventually(lambda: bool(engine.ledger))
        assert client_of(other).responses.cancel(waiting.id).status == "cancelled"
        eventually(lambda: not engine.ledger)  # the first server has heard of it
        engine.hold = False
    with running(settings, served(engine)) as url:
        assert client_of(url).responses.retrieve(second.id).to_dict() == second.to_dict()
        client_of(url).responses.delete(first.id)
        with pytest.raises(openai.BadRequestError, match="goes on with"):
            ask(client_of(url), previous_response_id=second.id)


def test_a_response_whose_server_was_killed_has_failed(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    with running(ServerSettings(store=str(path)), served(engine)) as url:
        engine.hold = True
        response = ask(client_of(url), background=True)
        with sqlite3.connect(path) as database:
            database.execute("UPDATE responses SET beat = beat - 60")
        found = client_of(url).responses.retrieve(response.id)
        assert found.status == "failed"
        assert found.error is not None
        assert "stopped" in found.error.message


def test_an_answer_that_cannot_be_stored_is_delivered(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "responses.db"
    with running(ServerSettings(store=str(path)), served(engine)) as url:
        client = client_of(url)
        stored = ask(client)
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE responses")
        response = ask(client)
        assert response.status == "completed"
        assert [event.type for event in ask(client, stream=True)][-1] == "response.completed"
        assert f"response {response.id} is not stored" in caplog.text
        for answer in (
            httpx.get(f"{url}/v1/responses/{stored.id}"),
            httpx.post(f"{url}/v1/responses", json={"input": "Well?", "previous_response_id": stored.id}),
            httpx.post(f"{url}/v1/responses", json={"input": "Well?", "background": True}),
        ):
            assert answer.status_code == 503
            assert "no such table" in answer.json()["error"]["message"]


def test_the_end_of_a_server_ends_what_is_in_background(engine: FakeEngine, tmp_path: Path) -> None:
    path = str(tmp_path / "responses.db")
    command = [sys.executable, "-m", "tests.server.fake", "0.2", "0.1", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        response = ask(client_of(process.stdout.readline().strip()), background=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    with running(ServerSettings(store=path), served(engine)) as url:
        found = client_of(url).responses.retrieve(response.id)
    assert found.status == "failed"
    assert found.error is not None
    assert "shutting down" in found.error.message
