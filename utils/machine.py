"""Resources of the machine that this process may use, and has used."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def available_cores() -> int:
    """Processor cores that this process may run on: fewer than the machine has where their number is limited.

    That is so under Slurm, taskset and in containers with a set of cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_bytes() -> int:
    """Largest resident set of this process so far, in bytes.

    On Linux from /proc: the counter of getrusage is inherited from the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def available_bytes() -> int | None:
    """Memory that new processes can have without swapping; None where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    fields = dict(line.split(":") for line in path.read_text(encoding="utf-8").splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])
