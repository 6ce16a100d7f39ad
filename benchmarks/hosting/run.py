"""Octavo beside Triton, LitServe, BentoML and FastAPI: the same models on the same machine, in turn.

.venv/bin/python benchmarks/hosting/run.py --workloads identity sleeper --rounds 5
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from load import Answers, LoadError
from report import Figure, Results, as_json, table
from repository import MODELS, UNBATCHED
from servers import SYSTEMS, TICKS, Server, ServerError
from workloads import INFERENCE_PROTOCOL, PER_SECOND, REPOSITORY, WORKLOADS, Workload

PEERS = Path(__file__).parents[2] / ".peers-hosting"
REDIRECTED_WIDTH = 160
START, START_MANY = "start", "start-many"
"""The workloads that are no requests: servers are started with a model that does nothing, or a repository of many."""
WIDTHS = {"mlp": (784, 2048, 2048, 10), "ensemble_onnx": (16, 64, 16)}
"""Of the layers of ONNX files. The first one's weights do not fit into a core's caches, so that batches pay."""

READY = Figure("to ready, s", "{:.2f}")
GAIN = Figure("× unbatched", "{:.1f}")
T = TypeVar("T")
console = Console(stderr=True, highlight=False)


class Comparison:
    """Servers of one workload after the other, and what was measured of them.

    Args:
        scratch: a folder for what servers need to have written.

    Attributes:
        failed: whether a server did.
    """

    def __init__(self, systems: Sequence[str], peers: Path, scratch: Path, seconds: float) -> None:
        self.results = Results()
        self.failed = False
        self._systems = systems
        self._peers = peers
        self._scratch = scratch
        self._seconds = seconds

    def start(self, name: str, rounds: int) -> None:
        """Start every server again and again."""
        systems = [each for each in self._systems if name == START or each in REPOSITORY]
        for number in range(rounds):
            for system in _rotated(systems, number):
                model = "many" if name == START_MANY else "identity" if system in INFERENCE_PROTOCOL else "upper"
                with ExitStack() as stack:
                    server = self._server(stack, system, model)
                    if server is not None:
                        self.results.add(name, READY, system, server.ready_seconds)

    def ask(self, works: Sequence[Workload], rounds: int) -> None:
        """Have all servers that workloads need, and ask them in turn."""
        with ExitStack() as stack:
            servers: dict[tuple[str, str], Server] = {}
            for system, model in dict.fromkeys((system, work.model) for work in works for system in work.systems):
                server = self._server(stack, system, model) if system in self._systems else None
                if server is not None:
                    server.pause()
                    servers[system, model] = server
            for number in range(rounds):
                for work in works:
                    there = [servers[system, work.model] for system in work.systems if (system, work.model) in servers]
                    for server in _rotated(there, number):
                        self._measure(work, server)
                console.print(f"round {number + 1} of {rounds}: {works[0].name} is done", markup=False)
        self._add_gains(works)

    def _server(self, stack: ExitStack, system: str, model: str) -> Server | None:
        try:
            server = Server(system, model, self._peers, self._scratch, self._onnx(model))
        except (ServerError, OSError, subprocess.CalledProcessError) as error:
            self._report(f"{system} does not serve {model}: {error}")
            return None
        stack.callback(server.close)
        return server

    def _onnx(self, model: str) -> Path:
        """The file that a model runs, if it runs one."""
        name = model.removesuffix(UNBATCHED)
        path = self._scratch / f"{name}.onnx"
        if name in WIDTHS and not path.exists():
            make = [str(self._peers / "bin" / "python"), str(MODELS / "make_mlp.py"), str(path)]
            subprocess.run([*make, *map(str, WIDTHS[name])], check=True)
        return path

    def _measure(self, work: Workload, server: Server) -> None:
        server.resume()
        try:
            answers = self._ask(work, server)
        except LoadError as error:
            self._report(f"{server.system} failed at {work.title}: {error}")
            return
        finally:
            server.pause()
        if not work.right(answers.body):
            self._report(f"{server.system} gave a wrong answer at {work.title}")
            return
        for figure in work.figures:
            self.results.add(work.title, figure, server.system, work.read(figure, answers))

    def _ask(self, work: Workload, server: Server) -> Answers:
        began, busy, cpu = time.perf_counter(), _busy_seconds(), server.cpu_seconds()
        answers = work.run(server, self._seconds)
        answers.server_cpu = server.cpu_seconds() - cpu
        others = _busy_seconds() - busy - answers.server_cpu - answers.client_cpu
        self.results.other_load.append(max(others, 0.0) / (time.perf_counter() - began) / (os.cpu_count() or 1))
        return answers

    def _add_gains(self, works: Sequence[Workload]) -> None:
        """What batching gains: requests per second over those of the same work unbatched, round by round."""
        for work in works:
            for system in work.systems if work.unbatched else ():
                batched, alone = (self.results.of(title, PER_SECOND, system) for title in (work.title, work.unbatched))
                for one, other in zip(batched, alone, strict=False):
                    self.results.add(work.title, GAIN, system, one / other)

    def _report(self, text: str) -> None:
        self.failed = True
        console.print(text, style="red", markup=False)


def main() -> int:
    """Compare, print, and return the exit status."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as with Ctrl-C, no server is left behind
    with tempfile.TemporaryDirectory(prefix="octavo-hosting-") as scratch:
        comparison = Comparison(arguments.systems, arguments.peers, Path(scratch), arguments.seconds)
        try:
            for name in arguments.workloads:
                if name in (START, START_MANY):
                    comparison.start(name, arguments.rounds)
                else:
                    comparison.ask(WORKLOADS[name], arguments.rounds)
        except KeyboardInterrupt:
            return 130
    shown = Console(highlight=False, width=None if sys.stdout.isatty() else REDIRECTED_WIDTH)
    shown.print(table(comparison.results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(comparison.results), indent=2) + "\n")
    return int(comparison.failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*WORKLOADS, START, START_MANY]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names, help="which (all)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="which (all)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each server is asked at a time (%(default)s)")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the environment the peers are in (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every round's figures there")
    arguments = parser.parse_args()
    arguments.peers = arguments.peers.resolve()
    return arguments


def _busy_seconds() -> float:
    """What all processors together have computed since the machine began."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq, *_ = (int(field) for field in file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / TICKS


def _rotated(items: Sequence[T], by: int) -> list[T]:
    """Another one goes first in every round."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]


if __name__ == "__main__":
    sys.exit(main())
