"""What a server's processes have used, read from /proc (Linux only)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(root: int) -> float:
    """User and system time of a process and all that descend from it, ended children included.

    The kernel counts in ticks of 10 ms, so the time between two calls should be much longer than that.

    :param root: process id at the top of the tree.
    """
    # proc(5): utime, stime, cutime and cstime are fields 14 to 17; fields 1 and 2 are cut off by _fields().
    ticks = sum(int(field) for pid in tree(root) for field in _fields(pid)[11:15])
    return ticks / TICKS_PER_SECOND


def resident_bytes(root: int) -> int:
    """Memory resident now, summed over the tree. Pages that processes share are counted in each."""
    return _status_bytes(root, "VmRSS:")


def peak_resident_bytes(root: int) -> int:
    """The highest that each process of the tree has been since it began, summed."""
    return _status_bytes(root, "VmHWM:")


def connections(root: int, port: int) -> int:
    """TCP connections of the tree to a port, over IPv4."""
    return sum(len(_sockets(pid) & _connected_to(pid, port)) for pid in tree(root))


def tree(root: int) -> list[int]:
    """The process ids of a process and of all that live and descend from it, the root first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        with suppress(FileNotFoundError):
            kind, _, inode = os.readlink(descriptor).partition(":")
            if kind == "socket":
                found.add(inode.strip("[]"))
    return found


def _connected_to(pid: int, port: int) -> set[str]:
    """The inodes of sockets that are connected to a port, in a process's network namespace."""
    _, *lines = (PROC / str(pid) / "net" / "tcp").read_text().splitlines()
    # proc(5): the second and third column are the local and the remote address and port in hex, the tenth is the inode.
    return {
        columns[9] for columns in map(str.split, lines) if columns[2].endswith(f":{port:04X}") and columns[3] == "01"
    }


def _fields(pid: int) -> list[str]:
    """The fields of a process's stat line from its state on; none if it has just gone."""
    try:
        line = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The command's name is in parentheses and may itself hold spaces and parentheses.
    return line.rpartition(")")[2].split()


def _status_bytes(root: int, name: str) -> int:
    total = 0
    for pid in tree(root):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith(name):
                total += int(line.split()[1]) * 1024
    return total
