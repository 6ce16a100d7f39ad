"""A worker seen from outside: start it, ask it, end it."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from workloads import Timing, Work

MODULES = {"octavo": "octavo", "llama.cpp": "llama_cpp", "openvino": "openvino_genai", "vllm": "vllm"}
"""The systems by the names they have on the command line, and the modules in `systems` that run them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A system to measure: what it is called in the table, what runs it, and the file it loads.

    Attributes:
        environment: variables of its process.
    """

    label: str
    system: str
    python: Path
    model: Path
    environment: dict[str, str] = field(default_factory=dict)


class Missing(Exception):
    """The system is not installed."""


class WorkerError(Exception):
    """The worker failed or ended; the message is one line."""


class Worker:
    """A loaded system in a process of its own.

    Args:
        log: whether its stderr is shown; otherwise its last line is shown should the process die.

    Attributes:
        load_seconds: from the start of the process until the model is loaded.
        info: what the system says of itself. peak_rss_bytes: the most memory it held up to the last run.

    Raises:
        Missing: the system is not installed.
        WorkerError: it does not load the model.
    """

    def __init__(self, candidate: Candidate, threads: int, works: Sequence[Work], *, log: bool) -> None:
        self.candidate = candidate
        self.peak_rss_bytes = 0
        if not candidate.python.exists():
            raise Missing(f"{candidate.python} does not exist")
        self._stderr = None if log else tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 — close() closes it
        command = [str(candidate.python), str(Path(__file__).with_name("worker.py")), MODULES[candidate.system]]
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, str(candidate.model), str(threads), json.dumps([astuple(work) for work in works])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **candidate.environment},
            start_new_session=True,  # Ctrl-C is for the driver, which ends its workers itself
        )
        try:
            self.info: dict[str, Any] = self._answer("ready")["ready"]
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - started

    def run(self, prompts: list[list[int]], output_len: int) -> Timing:
        """Generate after all prompts, and wait until that is done."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # a process that died is reported below
            self._process.stdin.write(json.dumps({"prompts": prompts, "output_len": output_len}) + "\n")
            self._process.stdin.flush()
        answer = self._answer("timing")
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        return Timing(**answer["timing"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        if self._stderr is not None:
            self._stderr.close()

    def describe(self) -> dict[str, object]:
        """What a result file keeps of this system."""
        return {
            "system": self.candidate.system,
            "model": self.candidate.model.name,
            **self.info,
            "load_seconds": self.load_seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }

    def _answer(self, wanted: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            if status < 0:
                raise WorkerError(f"was ended by {signal.Signals(-status).name}")
            raise WorkerError(f"ended with status {status}{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        if wanted not in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        return f": {lines[-1]}" if lines else ""
