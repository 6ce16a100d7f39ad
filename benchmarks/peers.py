"""Octavo and its peers on the same model file and the same work, in turn, round after round.

Run it with the Python that Octavo is installed in; README.md beside this file says what it does.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from octavo.cli.console import fetch
from octavo.errors import ConfigError, OctavoError
from process import MODULES, Candidate, Missing, Worker, WorkerError
from report import Results, as_json, table
from workloads import DEFAULT_NUMBERS, Timing, Work, Workload, parse_workload

WARM_UP_OUTPUT = 8
"""Tokens generated after each prompt by the run that is not counted."""

GGUF_READERS = ["octavo", "llama.cpp", "openvino"]

PYTHONS = {
    "octavo": Path(sys.executable),
    "llama.cpp": Path(".peers/bin/python"),
    "openvino": Path(".peers/bin/python"),
    "vllm": Path(".peers-vllm/bin/python"),
}

REDIRECTED_WIDTH = 160
"""Columns that a table may take in a file."""

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Comparison:
    """The loaded systems, and the works that they do in turn.

    Attributes:
        workers: the systems still in the race, by label. failed: whether one that was there has left it.
    """

    def __init__(self, works: Sequence[Work], threads: int, *, log: bool) -> None:
        self.workers: dict[str, Worker] = {}
        self.failed = False
        self._works = works
        self._threads = threads
        self._log = log

    def load(self, candidate: Candidate) -> None:
        """Start a system, or say why there is none."""
        _page_in(candidate.model)
        console.print(f"loading {candidate.label}")
        try:
            self.workers[candidate.label] = Worker(candidate, self._threads, self._works, log=self._log)
        except Missing as why:
            console.print(f"{candidate.label} is left out: {why}")
        except WorkerError as error:
            self._report(candidate.label, error)

    def run_rounds(self, rounds: int, seed: int) -> dict[tuple[str, Work], list[Timing]]:
        """Warm up, then let every system do every work once a round.

        Returns:
            The timings of the systems that ran to the end.
        """
        timings: dict[tuple[str, Work], list[Timing]] = {}
        for work in self._works:
            prompts = self._prompts(work, random.Random(f"{seed} warm-up {work}"))
            for label in list(self.workers):
                console.print(f"warm-up: {_name(work)}, {label}")
                self._attempt(label, prompts, min(work.output_len, WARM_UP_OUTPUT))
        for number in range(rounds):
            for work in self._works:
                prompts = self._prompts(work, random.Random(f"{seed} {number} {work}"))
                for label in _rotated(list(self.workers), number):
                    timing = self._attempt(label, prompts, work.output_len)
                    if timing is not None:
                        timings.setdefault((label, work), []).append(timing)
                        console.print(f"round {number + 1}: {_name(work)}, {label}: {timing.seconds:.2f} s")
        return {(label, work): found for (label, work), found in timings.items() if label in self.workers}

    def close(self) -> None:
        """End all systems."""
        for worker in self.workers.values():
            worker.close()

    def _prompts(self, work: Work, rng: random.Random) -> list[list[int]]:
        """Random prompts that every system has a token for. No two are alike, so that no prefix is shared."""
        vocab_size = min((worker.info["vocab_size"] for worker in self.workers.values()), default=1)
        return [[rng.randrange(vocab_size) for _ in range(work.prompt_len)] for _ in range(work.streams)]

    def _attempt(self, label: str, prompts: list[list[int]], output_len: int) -> Timing | None:
        try:
            return self.workers[label].run(prompts, output_len)
        except WorkerError as error:
            self._report(label, error)
            self.workers.pop(label).close()
            return None

    def _report(self, label: str, error: WorkerError) -> None:
        self.failed = True
        console.print(f"{label} failed: {error}", style="red", markup=False)


def main() -> int:
    """Compare, print, and return the exit status."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as with Ctrl-C, no worker is left behind
    try:
        return _compare(arguments)
    except OctavoError as error:
        console.print(str(error), markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


def _compare(arguments: argparse.Namespace) -> int:
    model = fetch(arguments.model).resolve()
    if not model.is_file():
        raise ConfigError(f"{arguments.model} is not a GGUF file, which is what all systems read")
    workloads: list[Workload] = arguments.workloads
    works = list(dict.fromkeys(workload.work for workload in workloads))
    comparison = Comparison(works, arguments.threads, log=arguments.verbose)
    try:
        for candidate in _candidates(arguments, model):
            comparison.load(candidate)
        timings = comparison.run_rounds(arguments.rounds, arguments.seed)
        if not comparison.workers:
            return 1
        results = Results(model, arguments.threads, workloads, comparison.workers, timings)
        Console(highlight=False, width=None if sys.stdout.isatty() else REDIRECTED_WIDTH).print(table(results))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
        return int(comparison.failed)
    finally:
        comparison.close()


def _candidates(arguments: argparse.Namespace, model: Path) -> list[Candidate]:
    pythons = PYTHONS | dict(arguments.python)
    environments = {"octavo": {"OCTAVO_ISA": arguments.isa}}
    candidates = [
        Candidate(system, system, pythons[system], model, environments.get(system, {})) for system in arguments.systems
    ]
    for system, path in arguments.also:
        label = f"{system} {re.split('[.-]', path.stem)[-1]}"  # the format: the last part of a model's name
        candidates.append(Candidate(label, system, pythons[system], path.resolve()))
    labels = [candidate.label for candidate in candidates]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"two columns have one name: {', '.join(labels)}; rename a file of --also")
    return candidates


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2:135m", help="GGUF file or short name (%(default)s)")
    parser.add_argument(
        "--workloads",
        nargs="+",
        default=list(DEFAULT_NUMBERS),
        metavar="KINDn",
        help="offlineN, decodeN: N requests at once; prefillN: one prompt of N tokens; streamN: N tokens of one stream",
    )
    parser.add_argument("--input-len", type=_positive, default=128, help="prompt of offline and decode (%(default)s)")
    parser.add_argument("--output-len", type=_positive, default=64, help="output of offline and decode (%(default)s)")
    parser.add_argument("--rounds", type=_positive, default=5, help="(%(default)s)")
    parser.add_argument("--threads", type=_positive, default=_cores(), help="threads of each system (%(default)s)")
    parser.add_argument(
        "--systems", nargs="+", choices=GGUF_READERS, default=GGUF_READERS, help="what runs on MODEL (%(default)s)"
    )
    parser.add_argument(
        "--also",
        action="append",
        type=_system_and_path,
        default=[],
        metavar="SYSTEM=PATH",
        help="one more column: a system on another model, such as llama.cpp=model.Q4_0.gguf or vllm=model-F32",
    )
    parser.add_argument(
        "--python",
        action="append",
        type=_system_and_path,
        default=[],
        metavar="SYSTEM=PYTHON",
        help="the interpreter of a system (.peers/bin/python; vllm: .peers-vllm/bin/python)",
    )
    parser.add_argument(
        "--isa", default="auto", help="instruction set of Octavo's kernels; the others choose their own (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every round's timings there")
    parser.add_argument("--verbose", action="store_true", help="show what the systems log")
    arguments = parser.parse_args()
    try:
        arguments.workloads = [
            parse_workload(text, arguments.input_len, arguments.output_len) for text in arguments.workloads
        ]
    except ValueError as error:
        parser.error(str(error))
    for _, path in arguments.also:
        if not path.exists():
            parser.error(f"{path} does not exist")
    return arguments


def _system_and_path(text: str) -> tuple[str, Path]:
    system, _, path = text.partition("=")
    if system not in MODULES or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not SYSTEM=PATH with a system of {', '.join(MODULES)}")
    return system, Path(path)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _page_in(path: Path) -> None:
    """Read a model, so that the first system to load it does not wait for the disk on behalf of all."""
    for part in [path] if path.is_file() else [part for part in path.iterdir() if part.is_file()]:
        with part.open("rb") as file:
            while file.read(2**24):
                pass


def _rotated(labels: list[str], by: int) -> list[str]:
    """Another system goes first in every round."""
    start = by % len(labels) if labels else 0
    return labels[start:] + labels[:start]


def _name(work: Work) -> str:
    return f"{work.streams} × {work.prompt_len}/{work.output_len}"


if __name__ == "__main__":
    sys.exit(main())
