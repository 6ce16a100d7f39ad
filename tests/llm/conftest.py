"""A model with recommendations of its own, as an `LLM` and behind the HTTP server."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from octavo import LLM
from tests.tiny import write_tiny_model


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its folder. What it recommends differs from everything else's defaults."""
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "recommending")
    recommended = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "eos_token_id": [2, 7]}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    return str(folder)


@pytest.fixture(scope="package", params=["worker", "in_process"])
def llm(model: str, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(model, max_num_seqs=8, in_process=request.param == "in_process") as llm:
        yield llm


@pytest.fixture(scope="package")
def server(model: str) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "octavo", "serve", model, "--port", "0", "--max-num-seqs", "8"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"ready on (http://\S+)", line):
                break
        assert found, "".join(said)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with httpx.Client(base_url=found[1], timeout=60, trust_env=False) as client:
            yield client
        process.terminate()


def run(program: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A Python program in a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=Path(__file__).parents[2])
