"""Fixtures that several rooms share."""

import gc
import importlib
import os
import pkgutil
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as in an engine's process: see octavo.backends.reference.workers
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # Triton's client would end processes that tests start after using it

import numpy as np
import pytest

import octavo
from tests.properties import use_profile
from tests.tiny import write_tiny_model

use_profile()

# A shell ignores Ctrl-C on behalf of what it runs in the background, and so would all that the tests start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.getoption("numprocesses", None):  # or this is the one process that collects nothing
        gc.disable()


def pytest_collection_finish() -> None:
    """Before the first test.

    Hypothesis draws the constants of the modules that have been imported, too: so that it draws the same at every run,
    all are, whichever tests run in this process. And what they brought along stays: looking through it for garbage took
    a tenth of a run.
    """
    for module in pkgutil.walk_packages(octavo.__path__, "octavo."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """What draws from the shared generators draws the same at every run, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete model with random weights; see `tests.tiny`."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def default_server() -> Iterator[str]:
    """The URL of a server of the default model, fetched and started as a user would do it."""
    subprocess.run([sys.executable, "-m", "octavo", "pull"], check=True, timeout=200)
    with serving("--port", "0") as url:
        yield url


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """`octavo serve` with these arguments. Yields its URL when all its models are ready."""
    command = [sys.executable, "-m", "octavo", "serve", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"ready on (http://\S+)", line):
                break
        assert found, "".join(said)
        drained = threading.Thread(target=process.stderr.read, daemon=True)  # or it would block on a full pipe
        drained.start()
        try:
            yield found[1]
        finally:
            process.terminate()
