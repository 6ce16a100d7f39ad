"""One system in a process of its own: JSON lines on stdin and stdout, measured where the tokens are made.

`python worker.py SYSTEM MODEL THREADS WORKS` answers `{"ready": ...}` or `{"missing": why}`, then for every line
`{"prompts": [[id, ...], ...], "output_len": n}` a line `{"timing": ..., "peak_rss_bytes": n}`. What fails is answered
with `{"error": why}`. The process ends with its input.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from systems import System
from workloads import Timing, Work


def main() -> None:
    """Load the system named by the arguments and serve it."""
    # Libraries print to stdout; the answers need it for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, model, threads, works = sys.argv[1:]
    for answer in _answers(name, Path(model), int(threads), [Work(*work) for work in json.loads(works)], sys.stdin):
        answers.write(json.dumps(answer) + "\n")


def _answers(name: str, model: Path, threads: int, works: list[Work], lines: TextIO) -> Iterator[dict[str, object]]:
    try:
        try:
            module = importlib.import_module(f"systems.{name}")
        except ImportError as error:
            yield {"missing": _one_line(error)}
            return
        system: System = module.load(model, threads, works)
        yield {"ready": asdict(system.info)}
        for line in lines:
            request = json.loads(line)
            timing = measure(system, request["prompts"], request["output_len"])
            yield {"timing": asdict(timing), "peak_rss_bytes": _peak_rss_bytes()}
    except Exception as error:
        yield {"error": f"{type(error).__name__}: {_one_line(error)}"}


def measure(system: System, prompts: list[list[int]], output_len: int) -> Timing:
    """Time one run, step by step."""
    counts = [0] * len(prompts)
    everyone = list(range(len(prompts)))
    prefill_seconds = decode_seconds = 0.0
    decode_tokens = 0
    start = before = time.perf_counter()
    for produced in system.generate(prompts, output_len):
        now = time.perf_counter()
        prefilled = all(counts)
        for stream in produced:
            counts[stream] += 1
        if prefilled and sorted(produced) == everyone:
            decode_seconds += now - before
            decode_tokens += len(produced)
        elif not prefilled:
            prefill_seconds = now - start
        before = now
    if counts != [output_len] * len(prompts):
        raise RuntimeError(
            f"generated between {min(counts)} and {max(counts)} tokens where {output_len} were asked for"
        )
    return Timing(before - start, prefill_seconds, decode_seconds, decode_tokens)


def _peak_rss_bytes() -> int:
    """The most memory this process held."""
    try:
        # Of this program alone: what getrusage says on Linux includes what the parent held before it was started.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
