"""What a set of processes uses, read from /proc."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `resident` counts shared pages in every process, `proportional` divides them (RSS and PSS)."""

    resident: int
    proportional: int


def cpu_seconds(processes: Iterable[int]) -> float:
    """User and system time so far, with that of children which ended; proc_pid_stat(5), fields 14 to 17."""
    ticks = 0
    for pid in processes:
        stat = _read(pid, "stat")
        if not stat:
            continue
        # The command name in parentheses may hold spaces; field 3 is the first after it.
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return ticks / _TICKS_PER_SECOND


def memory(processes: Iterable[int]) -> Memory:
    """The sum over the processes; proc_pid_smaps_rollup."""
    resident = proportional = 0
    for pid in processes:
        for line in _read(pid, "smaps_rollup").splitlines():
            match line.split():
                case ["Rss:", kibibytes, "kB"]:
                    resident += int(kibibytes) * 1024
                case ["Pss:", kibibytes, "kB"]:
                    proportional += int(kibibytes) * 1024
    return Memory(resident, proportional)


def _read(pid: int, name: str) -> str:
    """Empty for a process that has ended since it was listed."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
