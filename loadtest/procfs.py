"""What a process and its descendants use, read from Linux's /proc: processor time, memory, descriptors.

Children count, because what a server costs does not depend on how many processes it is cut into.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """`pid` and every living descendant of it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    members = [pid]
    for member in members:
        members.extend(children.get(member, []))
    return members


def is_there(pid: int) -> bool:
    """Whether it runs; one that has ended and has not been waited for does not."""
    return _stat(pid)[:1] not in ([], ["Z"])


def cpu_s(pid: int) -> float:
    """Seconds of processor time of the family so far, with that of children that have ended and were waited for."""
    ticks = sum(
        sum(int(field) for field in fields[11:15]) for member in family(pid) if (fields := _stat(member))
    )
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident memory of the family; a page that several of them share counts in each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(fields[21]) * page for member in family(pid) if (fields := _stat(member)))


def descriptors(pid: int) -> int:
    """Open file descriptors of the family."""
    return sum(_count(member) for member in family(pid))


def _count(pid: int) -> int:
    try:
        return sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    except FileNotFoundError:
        return 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything; empty where the process has gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()
