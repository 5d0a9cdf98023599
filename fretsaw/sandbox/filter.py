"""The seccomp filter: which system calls a program under test may make. x86-64 only.

Without new processes the limits of one process are the limits of the program, and to end it ends
all of it. Threads can be made; sockets, other programs and what belongs to other processes cannot.
The filter is in force for the rest of the process's life.
"""

import ctypes
import struct
from collections.abc import Mapping

from fretsaw.sandbox import libc

# linux/arch/x86/entry/syscalls/syscall_64.tbl
_NEW_PROCESSES = {"fork": 57, "vfork": 58, "execve": 59, "execveat": 322}
_GROUPS = {"setpgid": 109, "setsid": 112}
_NETWORK = {
    **{"socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288},
    # a ring makes sockets without a call that a filter sees
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427},
}
_OTHER_PROCESSES = {
    **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
    **{"tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297},
    **{"pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438},
    **{"process_madvise": 440, "process_mrelease": 448},
    **{"setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144},
    **{"sched_setaffinity": 203, "sched_setattr": 314, "ioprio_set": 251},
    **{"migrate_pages": 256, "move_pages": 279},
}
# memory that no limit of a process counts, and that outlives it
_SHARED_MEMORY = {
    **{"shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66},
    **{"msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "semtimedop": 220},
    **{"mq_open": 240, "mq_unlink": 241, "memfd_create": 319, "memfd_secret": 447},
    **{"add_key": 248, "request_key": 249, "keyctl": 250},
}
_SYSTEM = {
    **{"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272},
    **{"setns": 308, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431},
    **{"fsmount": 432, "fspick": 433, "mount_setattr": 442},
    **{"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "fanotify_init": 300},
    **{"name_to_handle_at": 303, "open_by_handle_at": 304, "mknod": 133, "mknodat": 259},
    **{"setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116},
    **{"setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126},
    **{"personality": 135, "modify_ldt": 154, "acct": 163, "syslog": 103, "quotactl": 179},
    **{"settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305},
    **{"swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171},
    **{"iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176},
    **{"finit_module": 313, "kexec_load": 246, "kexec_file_load": 320, "vhangup": 153},
    **{"inotify_init": 253, "inotify_init1": 294, "flock": 73},
}
# Landlock asks nothing about these
_CHANGES_OF_FILES = {
    **{"chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "truncate": 76},
    **{"chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260},
    **{"utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280},
    **{"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190},
    **{"removexattr": 197, "lremovexattr": 198, "fremovexattr": 199},
}
_KILL, _TGKILL, _PRLIMIT, _PRCTL, _CLONE, _CLONE3 = 62, 234, 302, 157, 56, 435
_FIRST_UNKNOWN = 463  # later calls, and those of the 32-bit table, are told not to exist

_ARCHITECTURE = 0xC000003E  # x86-64
_CLONE_THREAD = 0x10000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # where they stand in struct seccomp_data
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000
_NOT_PERMITTED, _NO_SUCH_CALL = 0x00050001, 0x00050026  # with EPERM, ENOSYS
_SET_DEATH_SIGNAL, _SET_SECCOMP, _MODE_FILTER, _NO_NEW_PRIVILEGES = 1, 22, 2, 38  # of prctl


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _return_at(number: int, verdict: int) -> bytes:
    return _instruction(_EQUAL, number, 0, 1) + _instruction(_RETURN, verdict)


def _by_first_argument(number: int, verdicts: Mapping[int, int], otherwise: int) -> bytes:
    """Give a call the verdict of its first argument."""
    body = _instruction(_LOAD, _FIRST_ARGUMENT)
    body += b"".join(_return_at(value, verdict) for value, verdict in verdicts.items())
    body += _instruction(_RETURN, otherwise)
    return _instruction(_EQUAL, number, 0, len(body) // 8) + body


def _filter_code(pid: int, *, can_write: bool) -> bytes:
    """Return the filter of a process, as the kernel's instructions of 8 bytes."""
    denied = {
        **_NEW_PROCESSES,
        **_GROUPS,
        **_NETWORK,
        **_OTHER_PROCESSES,
        **_SHARED_MEMORY,
        **_SYSTEM,
        **({} if can_write else _CHANGES_OF_FILES),
    }
    thread = [
        _instruction(_EQUAL, _CLONE, 0, 4),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_ANY_BIT, _CLONE_THREAD, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _NOT_PERMITTED),
    ]
    return b"".join(
        [
            _instruction(_LOAD, _ARCH),
            _instruction(_EQUAL, _ARCHITECTURE, 1, 0),
            _instruction(_RETURN, _KILL_PROCESS),
            _instruction(_LOAD, _NUMBER),
            _instruction(_AT_LEAST, _FIRST_UNKNOWN, 0, 1),
            _instruction(_RETURN, _NO_SUCH_CALL),
            _return_at(_CLONE3, _NO_SUCH_CALL),  # its flags lie in memory; threads then use clone
            *(_return_at(number, _NOT_PERMITTED) for number in denied.values()),
            *thread,
            _by_first_argument(_KILL, {pid: _ALLOW}, _NOT_PERMITTED),
            _by_first_argument(_TGKILL, {pid: _ALLOW}, _NOT_PERMITTED),
            _by_first_argument(_PRLIMIT, {0: _ALLOW, pid: _ALLOW}, _NOT_PERMITTED),
            # it ends with the zygote
            _by_first_argument(_PRCTL, {_SET_DEATH_SIGNAL: _NOT_PERMITTED}, _ALLOW),
            _instruction(_RETURN, _ALLOW),
        ]
    )


def install(pid: int, *, can_write: bool) -> None:
    """Filter the calls of this process, whose id is `pid`, from here on.

    Without `can_write` the attributes of files cannot be changed either.
    """
    code = _filter_code(pid, can_write=can_write)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions))
    libc.call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.call("prctl", _SET_SECCOMP, _MODE_FILTER, program)
