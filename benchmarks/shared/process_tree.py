"""Processor time, memory and file descriptors of a process and its descendants (Linux)."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "children", "descriptors", "reset_peaks", "resident_bytes", "tree", "usage"]

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """One process: its parent, processor seconds without its children's, resident bytes now and at the peak."""

    parent: int
    seconds: float
    resident: int
    peak: int


def usage(pid: int) -> Usage | None:
    """What a process uses; ``None`` when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
    except (OSError, ValueError):
        return None
    resident, peak = (int(status.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Usage(int(stat[1]), sum(map(int, stat[11:13])) / _TICKS, resident, peak)


def tree(root: int) -> dict[int, Usage]:
    """``root`` and its descendants by process id. Orphans are not found."""
    everything = {int(path.name): found for path in Path("/proc").glob("[0-9]*") if (found := usage(int(path.name)))}
    wanted, left = {root} & set(everything), True
    while left:
        more = {pid for pid, one in everything.items() if one.parent in wanted} - wanted
        wanted |= more
        left = bool(more)
    return {pid: everything[pid] for pid in wanted}


def children(root: int) -> list[int]:
    """The descendants of ``root``, oldest first."""
    return sorted(set(tree(root)) - {root})


def reset_peaks(root: int) -> None:
    """Reset the peaks to the memory that is resident now."""
    for pid in tree(root):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def resident_bytes(root: int) -> int:
    """Memory of the whole tree. Mapped files such as libraries count once, other shared memory in every process.

    ``smaps_rollup`` would be exact, but reading it stops the process for tens of milliseconds.
    """
    own, files = 0, [0]
    for pid in tree(root):
        with contextlib.suppress(OSError, KeyError, ValueError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            anonymous, shared, mapped = (
                int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "RssFile")
            )
            own += anonymous + shared
            files.append(mapped)
    return own + max(files)


def descriptors(pid: int) -> int:
    """Number of open files and connections of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
