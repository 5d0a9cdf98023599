"""How much memory this process can still take: what is free, what it is let. Standard library only.

Linux tells all of it, in files. Memory that only caches files counts as free, for it is given up.
"""

import math
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

_LIMITS = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))  # `ulimit -v`, `-d`
_GROUPS = {  # of a control group, version 2 and 1: its folder, limit, use
    "": ("sys/fs/cgroup", "memory.max", "memory.current"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_bytes(root: Path = Path("/")) -> float:
    """Return the bytes that this process can still take of the host's memory.

    It is the least of what the machine has free, swap included, what the control groups around the
    process are let, and the process's own limits.
    """
    return min((_of_machine(root), *_of_groups(root), *_of_limits(root)))


def _of_machine(root: Path) -> float:
    sizes = _kilobytes(root / "proc/meminfo")
    if "MemAvailable" in sizes:
        return sizes["MemAvailable"] + sizes.get("SwapFree", 0)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # at most


def _of_groups(root: Path) -> Iterator[float]:
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        for name in _GROUPS.keys() & set(controllers.split(",")):
            top, limit, used = _GROUPS[name]
            group = root / top / path.lstrip("/")
            for around in (group, *group.parents):
                if (around / limit).is_file() and (around / used).is_file():
                    most = (around / limit).read_text().strip()
                    held = int((around / used).read_text()) - _cached_bytes(around)
                    yield int(most) - held if most != "max" else math.inf


def _cached_bytes(group: Path) -> int:
    stat = (group / "memory.stat").read_text() if (group / "memory.stat").is_file() else ""
    sizes = re.findall(r"^(total_|)(?:in|)active_file (\d+)", stat, re.MULTILINE)
    whole = max((prefix for prefix, _ in sizes), default="")  # in version 1 that of groups within
    return sum(int(size) for prefix, size in sizes if prefix == whole)


def _of_limits(root: Path) -> Iterator[float]:
    sizes = _kilobytes(root / "proc/self/status")
    for limit, used in _LIMITS:
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            yield most - sizes.get(used, 0)


def _kilobytes(path: Path) -> dict[str, int]:
    """Return the lines `NAME: 12 kB` of a file as bytes; none where it is not there."""
    text = path.read_text() if path.is_file() else ""
    return {name: 1024 * int(size) for name, size in re.findall(r"(?m)^(\w+):\s*(\d+) kB", text)}
