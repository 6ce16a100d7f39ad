"""How many threads are worth having."""

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores() -> int:
    """Cores this process may run on, within a container's quota; the hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    try:
        count = len({(_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in allowed})
    except OSError:  # a container without /sys
        count = len(allowed)
    return max(1, min(count, _quota() or count))


def _quota() -> int | None:
    """Whole cores that the control group grants, None without a limit."""
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        return None
    return -(-int(quota) // int(period)) if quota != "max" else None
