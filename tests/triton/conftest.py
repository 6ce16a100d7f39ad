"""Both servers, started once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.triton.repository import make_repository
from tests.triton.servers import Served, serving

collect_ignore_glob = [] if "OCTAVO_TRITON" in os.environ else ["test_*"]


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    """Octavo and Triton."""
    with ExitStack() as started:
        found = []
        models = make_repository(tmp_path_factory.mktemp("models"))
        for name in ("octavo", "triton"):
            scratch: Path = tmp_path_factory.mktemp(name)
            found.append(started.enter_context(serving(name, models, scratch)))
        yield found[0], found[1]
