"""Figures of the machine."""

from pathlib import Path

from octavo.server.machine_metrics import MachineCollector


def values(collector: MachineCollector) -> dict[str, float]:
    return {each.name: each.samples[0].value for each in collector.collect()}


def test_figures_are_those_of_the_system(tmp_path: Path) -> None:
    stat, meminfo = tmp_path / "stat", tmp_path / "meminfo"
    stat.write_text("cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    meminfo.write_text("MemTotal:  2000 kB\nMemFree:  100 kB\nMemAvailable:  500 kB\nHugePages_Total:  0\n")
    collector = MachineCollector(tmp_path)
    assert values(collector) == {
        "nv_cpu_utilization": 0.0,
        "nv_cpu_memory_total_bytes": 2000 * 1024,
        "nv_cpu_memory_used_bytes": 1500 * 1024,
    }
    stat.write_text("cpu  30 0 20 120 30 0 0 0 20 0\n")
    assert values(collector)["nv_cpu_utilization"] == 0.3  # 30 of 100 ticks; guests are users' already
