"""Both servers, started once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.triton.repository import make_repository
from tests.triton.servers import Served, serving

collect_ignore_glob = [] if "OCTAVO_TRITON" in os.environ else ["test_*"]


NAMES = ("octavo", "triton")


@pytest.fixture(scope="session")
def trace_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where the two write traces, if they are told to."""
    octavo, triton = (tmp_path_factory.mktemp(f"{name}-traces") / "trace.json" for name in NAMES)
    return octavo, triton


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory, trace_files: tuple[Path, Path]) -> Iterator[tuple[Served, Served]]:
    """Octavo and Triton."""
    with ExitStack() as started:
        found = []
        models = make_repository(tmp_path_factory.mktemp("models"))
        for name, file in zip(NAMES, trace_files, strict=True):
            scratch: Path = tmp_path_factory.mktemp(name)
            found.append(started.enter_context(serving(name, models, scratch, f"--trace-config=triton,file={file}")))
        yield found[0], found[1]
