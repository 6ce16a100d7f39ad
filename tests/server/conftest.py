"""One server with one scripted engine for all tests, which leave it as they found it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from octavo.server.settings import ServerSettings
from octavo.text import Tokenizer
from tests.server.fake import FakeEngine, make_tokenizer, running, served


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return make_tokenizer(folder)


@pytest.fixture(scope="session")
def _engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture(scope="session")
def url(_engine: FakeEngine) -> Iterator[str]:
    with running(ServerSettings(), served(_engine)) as address:
        yield address


@pytest.fixture
def engine(_engine: FakeEngine) -> Iterator[FakeEngine]:
    _engine.reset()
    yield _engine
    _engine.reset()
    eventually(lambda: not _engine.ledger)


@pytest.fixture(scope="session")
def _client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=20) as sdk:
        yield sdk


@pytest.fixture
def client(_client: openai.OpenAI, engine: FakeEngine) -> openai.OpenAI:
    return _client


@pytest.fixture(scope="session")
def _http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as plain:
        yield plain


@pytest.fixture
def http(_http: httpx.Client, engine: FakeEngine) -> httpx.Client:
    return _http


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something that another thread brings about holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)
