"""Free memory, as Linux tells it of a machine, of control groups and of a process."""

import math
import resource
from pathlib import Path

import pytest

from fretsaw.scenario.free_memory import free_bytes

GIB = 2**30
MEMINFO = """MemTotal:       16777216 kB
MemFree:          100000 kB
MemAvailable:    8388608 kB
SwapTotal:       2097152 kB
SwapFree:        1048576 kB
HugePages_Total:       0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 16 GiB, of which 8 are available, and 1 of swap is free."""
    write(tmp_path, "proc/meminfo", MEMINFO)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_what_caches_files_and_swap_are_free(root: Path) -> None:
    assert free_bytes(root) == 9 * GIB


def test_a_machine_that_does_not_tell_has_at_most_its_memory(tmp_path: Path) -> None:
    assert GIB / 16 < free_bytes(tmp_path) < math.inf


@pytest.mark.parametrize("at", ["/jobs/a", "/jobs", "/"])
def test_a_group_is_let_so_much_without_its_caches(root: Path, at: str) -> None:
    write(root, "proc/self/cgroup", "0::/jobs/a\n")
    group = f"sys/fs/cgroup{at.rstrip('/')}"
    write(root, "sys/fs/cgroup/memory.max", "max\n")
    write(root, "sys/fs/cgroup/memory.current", f"{12 * GIB}\n")
    write(root, f"{group}/memory.max", f"{4 * GIB}\n")
    write(root, f"{group}/memory.current", f"{3 * GIB}\n")
    assert free_bytes(root) == 1 * GIB
    stat = f"anon {GIB}\nfile {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}\n"
    write(root, f"{group}/memory.stat", stat)
    assert free_bytes(root) == 2.5 * GIB
    write(root, f"{group}/memory.max", "max\n")
    assert free_bytes(root) == 9 * GIB


def test_a_group_of_the_first_version_is_known_too(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:cpu,memory:/job\n0::/\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{12 * GIB}\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{4 * GIB}\n")
    write(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", f"{3 * GIB}\n")
    stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"
    write(root, "sys/fs/cgroup/memory/job/memory.stat", stat)
    assert free_bytes(root) == 2 * GIB


@pytest.mark.parametrize(("which", "held"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_the_limit_of_the_process_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch, which: str, held: str
) -> None:
    most = {getattr(resource, which): (4 * GIB, resource.RLIM_INFINITY)}
    free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: most.get(limit, free))
    write(root, "proc/self/status", f"Name:\tpython\n{held}:\t 1048576 kB\n")
    assert free_bytes(root) == 3 * GIB
