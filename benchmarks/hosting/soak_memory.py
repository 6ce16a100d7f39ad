"""What a server's processes take: memory, descriptors, files, and whether that grows."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console

say = Console(highlight=False, markup=False, soft_wrap=True).print

WINDOWS = 4
"""In which the time after the warm-up is cut."""

WARM_UP, MOST_WARM_UP = 0.2, 180.0
"""Of the time, and seconds at most: what is kept for requests to come has been kept by then."""

MOST_GROWTH = 0.05

SMALL = 6.0
"""MiB: a process that takes so much more has not grown. The allocator keeps as much of freed memory, for what is as
large as the largest tensors here."""

TENSORS = "memory for tensors"
"""That processes share, of one request or another: descriptors of it."""


@dataclass
class Sample:
    """How much there was at a moment, in MiB.

    Attributes:
        kinds: of all processes of a kind. processes: of each, by its number, without `shared`.
        shared: of memory that processes share: for tensors, which comes and goes with the load, and for what is kept.
        descriptors: of each kind of process and what they are of. requests: that there had been.
    """

    at: float
    kinds: dict[str, float] = field(default_factory=dict)
    processes: dict[int, tuple[str, float]] = field(default_factory=dict)
    shared: float = 0.0
    requests: int = 0
    descriptors: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> float:
        return sum(self.kinds.values())


def family(server: psutil.Process) -> list[psutil.Process]:
    """The server's processes, itself first."""
    return [server, *server.children(recursive=True)]


def kind_of(process: psutil.Process, server: psutil.Process) -> str:
    """Which of the server's processes it is; of a model, with its name."""
    if process.pid == server.pid:
        return "supervisor"
    if "octavo.server.process" in process.cmdline():
        return "frontend"
    if process.ppid() == server.pid:
        return "fork server"
    name = Path(f"/proc/{process.pid}/comm").read_text()  # as in "first v2 instance 2"
    return f"model {name.split()[0]}"


def memory(pid: int) -> tuple[float, float]:
    """MiB of a process, of what it shares with others its part (PSS); and how much of that is in files without a place,
    in which tensors are shared."""
    found = {"Pss": 0.0, "Pss_Shmem": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) / 1024
    return found["Pss"], found["Pss_Shmem"]


def descriptors(pid: int) -> Counter[str]:
    """How many descriptors a process has, of each kind."""
    found: Counter[str] = Counter()
    for each in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            to = os.readlink(f"/proc/{pid}/fd/{each}")
            if to.startswith("/memfd:"):
                found[TENSORS if to.startswith("/memfd:octavo ") else "memory"] += 1
            else:
                found[to.split(":")[0] if ":" in to else "file"] += 1
    return found


def sample(server: psutil.Process) -> Sample:
    """Look at all processes that there are."""
    found = Sample(time.monotonic())
    for process in family(server):
        with contextlib.suppress(psutil.Error, OSError):
            kind = kind_of(process, server)
            size, shared = memory(process.pid)
            found.kinds[kind] = found.kinds.get(kind, 0.0) + size
            found.shared += shared
            found.processes[process.pid] = (kind, size - shared)
            for name, count in descriptors(process.pid).items():
                found.descriptors[f"{kind}: {name}"] += count
    return found


def medians(samples: Sequence[Sample], figure: Callable[[Sample], float], windows: int = WINDOWS) -> list[float]:
    """Of a figure in windows of the same length."""
    size = len(samples) / windows
    cut = [samples[int(at * size) : int((at + 1) * size)] for at in range(windows)]
    return [median([figure(each) for each in part]) for part in cut if part]


def growth(found: Sequence[float]) -> float:
    """From the first window to the last, as a part of the first."""
    return found[-1] / found[0] - 1 if found and found[0] else 0.0


def shown(figures: Sequence[float]) -> str:
    """Figures in MiB, and how they have grown."""
    return f"{' '.join(f'{each:.1f}' for each in figures)} MiB, {growth(figures):+.1%}"


def judged(samples: Sequence[Sample], rests: Sequence[Sample]) -> list[str]:
    """Say how memory and descriptors have grown. Returns what has grown too much.

    Under load memory follows the load, which is as much as the machine computes at the moment: it is judged at rest.
    """
    began = samples[0].at
    warm = began + min(WARM_UP * (samples[-1].at - began), MOST_WARM_UP)
    _say_of_load([each for each in samples if each.at >= warm])
    resting, grown = [each for each in rests if each.at >= warm], []
    halves = min(2, len(resting))
    total = medians(resting, lambda each: each.total, halves)
    say(f"at rest: {' '.join(f'{each.total:.1f}' for each in resting)} MiB; halves: {shown(total)}")
    if growth(total) > MOST_GROWTH:
        grown.append(f"all processes: {shown(total)}")
    for pid, kind in lasting(resting).items():
        found = medians(resting, lambda each, pid=pid: each.processes[pid][1], halves)  # type: ignore[misc]
        say(f"  {kind:14} {shown(found)}: process {pid}, which was there all the time")
        if growth(found) > MOST_GROWTH and found[-1] - found[0] > SMALL:
            grown.append(f"{kind} (process {pid}): {shown(found)}")
    return grown


def _say_of_load(steady: Sequence[Sample]) -> None:
    size = len(steady) // WINDOWS
    parts = [steady[at * size : (at + 1) * size] for at in range(WINDOWS)] if size > 1 else []
    rates = [(part[-1].requests - part[0].requests) / (part[-1].at - part[0].at) for part in parts]
    say(f"under load: {shown(medians(steady, lambda each: each.total))}")
    say(f"  at requests a second: {' '.join(f'{each:.0f}' for each in rates)}")
    say(f"  what processes share: {shown(medians(steady, lambda each: each.shared))}")
    for kind in sorted({kind for each in steady for kind in each.kinds}):
        found = medians(steady, lambda each, kind=kind: each.kinds.get(kind, 0.0))  # type: ignore[misc]
        say(f"  {kind:14} {shown(found)}")
    say("descriptors under load:")
    for name in sorted({name for each in steady for name in each.descriptors}):
        counts = medians(steady, lambda each, name=name: each.descriptors[name])  # type: ignore[misc]
        say(f"  {name:30} {' '.join(f'{each:g}' for each in counts)}")


def lasting(samples: Sequence[Sample]) -> dict[int, str]:
    """The processes that are in all samples, and what they are."""
    there = set.intersection(*(set(each.processes) for each in samples)) if samples else set()
    return {pid: samples[0].processes[pid][0] for pid in sorted(there)}


def zombies(server: psutil.Process) -> int:
    """Processes that have ended and that nobody has asked how."""
    found = 0
    for each in family(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += each.status() == psutil.STATUS_ZOMBIE
    return found
