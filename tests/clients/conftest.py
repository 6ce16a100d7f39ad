"""Servers for clients that live in an environment of their own (`make clients`)."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[str]:
    """The URL of the default model's, which is also in OCTAVO_URL; OCTAVO is the command that serves."""
    with serving(model()) as url:
        os.environ["OCTAVO_URL"] = url
        yield url


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the default model's weights in float32, which others read as well."""
    folder = tmp_path_factory.mktemp("float32")
    python = Path(os.environ["OCTAVO"]).with_name("python")
    subprocess.run([python, REPOSITORY / "benchmarks" / "export_float.py", model(), folder], check=True)
    return folder


@pytest.fixture(scope="module")
def float32_server(float32: Path) -> Iterator[str]:
    """The URL of a server of it, which computes in float32 throughout."""
    with serving(str(float32), "--kv-cache-dtype", "fp32") as url:
        yield url


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The URL of a server with these arguments."""
    command = [os.environ["OCTAVO"], "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if "ready" in line and (found := re.search(r"http://\S+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield url.rstrip(":,")
        finally:
            process.terminate()


def model() -> str:
    """What is served."""
    return os.environ.get("OCTAVO_MODEL", "smollm2:135m")
