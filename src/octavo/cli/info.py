"""`octavo info`: what Octavo found on this machine, and what the machine does at best."""

import platform
from typing import Any

from rich.table import Table

import octavo
from octavo.backends.ceilings import ceilings
from octavo.cli.console import output
from octavo.engine.config import EngineConfig, memory_available, memory_total
from octavo.engine.loader import choose_backend, instruction_sets, open_backend


def collect(config: EngineConfig) -> dict[str, Any]:
    """The facts, by the names of `--json`. Takes about a second."""
    backend = open_backend(config)
    best = ceilings(backend.isa, backend.threads)
    return {
        "version": octavo.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "backend": backend.name,
        "isa": backend.isa,
        "isas": instruction_sets() if choose_backend("auto") == "cpu" else [],
        "threads": backend.threads,
        "memory_bytes": memory_total(),
        "memory_available_bytes": memory_available(),
        "memory_bytes_per_second": best.bytes_per_second,
        "float_operations_per_second": best.float_operations_per_second,
        "integer_operations_per_second": best.integer_operations_per_second,
    }


def show_info(config: EngineConfig, *, as_json: bool) -> None:
    """Print the facts, as a table or as JSON."""
    facts = collect(config)
    if as_json:
        output.print_json(data=facts)
        return
    others = ", ".join(name for name in facts["isas"] if name != facts["isa"])
    total, available = (facts[name] / 2**30 for name in ("memory_bytes", "memory_available_bytes"))
    rows = {
        "octavo": f"{facts['version']}, Python {facts['python']}, {facts['machine']}",
        "backend": facts["backend"],
        "instruction set": (facts["isa"] or "numpy's") + (f" (also: {others})" if others else ""),
        "threads": str(facts["threads"]),
        "memory": f"{total:.1f} GiB, {available:.1f} GiB available",
        "memory read": f"{facts['memory_bytes_per_second'] / 1e9:.1f} GB/s",
        "float32": f"{facts['float_operations_per_second'] / 1e9:.0f} GFLOP/s",
        "8-bit integers": f"{facts['integer_operations_per_second'] / 1e9:.0f} GOP/s",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    output.print(table)
