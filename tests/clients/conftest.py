"""A server of the default model, for clients that live in an environment of their own (`make clients`)."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[str]:
    """Its URL, which is also in OCTAVO_URL; OCTAVO is the command that serves."""
    command = [os.environ["OCTAVO"], "serve", model(), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if "ready" in line and (found := re.search(r"http://\S+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        os.environ["OCTAVO_URL"] = url.rstrip(":,")
        try:
            yield os.environ["OCTAVO_URL"]
        finally:
            process.terminate()


def model() -> str:
    """What is served."""
    return os.environ.get("OCTAVO_MODEL", "smollm2:135m")
