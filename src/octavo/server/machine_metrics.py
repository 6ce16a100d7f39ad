"""Figures of the machine under Triton's names (`nv_cpu_…`), where the system has them in files."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PROC = Path("/proc")


class MachineCollector(Collector):
    """Reads them at the moment of the scrape. The processors' utilization is that since the one before.

    Args:
        proc: where the system's files are.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._before = self._ticks()

    @classmethod
    def is_possible(cls) -> bool:
        """Whether this system has them."""
        return (PROC / "stat").is_file() and (PROC / "meminfo").is_file()

    def collect(self) -> Iterator[Metric]:
        """One gauge after the other."""
        busy, total = self._ticks()
        before_busy, before_total = self._before
        self._before = busy, total
        share = (busy - before_busy) / (total - before_total) if total > before_total else 0.0
        yield GaugeMetricFamily("nv_cpu_utilization", "Share of the processors that is used, 0 to 1.", value=share)
        memory = self._memory()
        all_ = memory["MemTotal"]
        yield GaugeMetricFamily("nv_cpu_memory_total_bytes", "Memory of the machine.", value=all_)
        used = all_ - memory["MemAvailable"]
        yield GaugeMetricFamily("nv_cpu_memory_used_bytes", "Of that, what is used.", value=used)

    def _ticks(self) -> tuple[int, int]:
        """Of all processors since the machine was started: busy ones, and all (proc_stat(5))."""
        fields = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]  # guests count as users, too
        ticks = list(map(int, fields))
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks)

    def _memory(self) -> dict[str, int]:
        """Bytes by name (proc_meminfo(5))."""
        found = {}
        for line in (self._proc / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found[name] = int(value.split()[0]) * 1024
        return found
