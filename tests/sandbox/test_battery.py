"""Hostile programs: none escapes, none is judged right, and the next one is judged as before."""

import os
import socket
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest
from sandbox.conftest import LIMITS

from fretsaw.sandbox.limits import Limits
from fretsaw.sandbox.sandbox import Ended, Sandbox, Verdict

TESTS = ["assert double(2) == 4", "assert double(21) == 42"]
GOOD = "def double(x):\n    return 2 * x"
WRONG = "def double(x):\n    return 5"


def run(sandbox: Sandbox, source: str, stdin: str = "") -> Ended:
    """Run a hostile program, and see that a good one is judged right after it."""
    ended = sandbox.run(textwrap.dedent(source), stdin)
    assert sandbox.run_tests(GOOD, TESTS) == Verdict(True)
    return ended


def judge(sandbox: Sandbox, source: str) -> Verdict:
    """Run the tests of a hostile program, and see that a good one is judged right after it."""
    verdict = sandbox.run_tests(textwrap.dedent(source), TESTS)
    assert sandbox.run_tests(GOOD, TESTS) == Verdict(True)
    return verdict


# --- what a program may not do --------------------------------------------------------------------

DENIED = {
    "fork": "import os\nos.fork()",
    "a fork bomb": "import os\nwhile True:\n    os.fork()",
    "vfork by a shell": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])",
    "system": "import os\nassert os.system('true') == 0",
    "a process of multiprocessing": """
        import multiprocessing
        multiprocessing.get_context("fork").Process(target=print).start()
    """,
    "exec": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', ''])",
    "a session of its own": "import os\nos.setsid()",
    "a group of its own": "import os\nos.setpgid(0, 0)",
    "the network": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "a local socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "ending its parent": "import os\nos.kill(os.getppid(), 9)",
    "ending its group": "import os\nos.kill(0, 9)",
    "ending everything": "import os\nos.kill(-1, 9)",
    "a signal by a file": "import os\nos.pidfd_open(os.getppid())",
    "its parent's limits": "import os, resource\nresource.prlimit(os.getppid(), 0)",
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "another user": "import os\nos.setuid(0)",
    "memory that no limit counts": "import os\nos.memfd_create('x')",
    "the system's files, to write": "open('/usr/lib/x', 'w')",
    "a file at the top": "open('/x', 'w')",
    "the host's temporary folders": "open('/var/tmp/fretsaw-escaped', 'w')",
    "shared memory": "open('/dev/shm/fretsaw-escaped', 'w')",
    "the host's passwords": "open('/etc/shadow').read()",
    "the environment of others": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "the environment of the first": "open('/proc/1/environ').read()",
    "its own memory as a file": "open('/proc/self/mem', 'rb')",
    "a disk": "open('/dev/sda', 'rb')",
    "a folder's list": "import os\nprint(os.listdir('/home'))",
    "a link to what it may not read": """
        import os
        os.symlink("/etc/shadow", "link")
        print(open("link").read())
    """,
    "a hard link": "import os\nos.link('/etc/passwd', 'copy')",
    "a device": "import os, stat\nos.mknod('disk', stat.S_IFBLK | 0o666, os.makedev(8, 0))",
    "a mount": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == 0
    """,
    "a namespace": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x10000000) == 0
    """,
    "a ring of calls": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0
    """,
    "the memory of its parent": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.ptrace(16, os.getppid(), 0, 0) == 0
    """,
    "a call of the 32-bit table": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(0x40000000 + 57) >= 0
    """,
    "to outlive its parent": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(1, 0, 0, 0, 0) == 0
    """,
}


@pytest.mark.parametrize("what", DENIED)
def test_what_is_denied(sandbox: Sandbox, what: str) -> None:
    ended = run(sandbox, DENIED[what])
    assert ended.fault == "exit code 1"
    kinds = ("PermissionError", "OSError", "FileNotFoundError", "AssertionError", "ValueError")
    assert ended.errors.splitlines()[-1].startswith((*kinds, "BlockingIOError")), ended.errors


def test_nothing_of_the_host_is_changed(sandbox: Sandbox) -> None:
    with tempfile.TemporaryDirectory(prefix="fretsaw-battery-") as folder:
        secret = Path(folder) / "secret"
        secret.write_text("expected output")
        secret.chmod(0o644)
        Path(folder).chmod(0o777)
        source = f"""
            import os
            done = []
            for attempt in (
                lambda: print(open({str(secret)!r}).read()),
                lambda: open({str(secret)!r}, "w").write("x"),
                lambda: os.truncate({str(secret)!r}, 0),
                lambda: os.chmod({str(secret)!r}, 0),
                lambda: os.chown({str(secret)!r}, 1, 1),
                lambda: os.utime({str(secret)!r}, (0, 0)),
                lambda: os.setxattr({str(secret)!r}, "user.x", b"x"),
                lambda: os.remove({str(secret)!r}),
                lambda: os.rename({str(secret)!r}, {folder!r} + "/other"),
                lambda: os.mkdir({folder!r} + "/made"),
                lambda: os.symlink("a", {folder!r} + "/link"),
            ):
                try:
                    attempt()
                    done.append(attempt.__code__.co_firstlineno)
                except OSError:
                    pass
            print(done)
        """
        before = secret.stat()
        assert run(sandbox, source).output == "[]\n"
        assert secret.stat() == before
        assert secret.read_text() == "expected output"
        assert os.listdir(folder) == ["secret"]


def test_a_server_of_the_host_is_out_of_reach(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert "Operation not permitted" in run(sandbox, source).errors


# --- what a program may not take ------------------------------------------------------------------


def test_time_on_the_processor(sandbox: Sandbox) -> None:
    too_slow = "no end within 1 s on the processor"
    assert run(sandbox, "while True:\n    pass").fault == too_slow
    ignoring = """
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True:
            pass
    """
    assert run(sandbox, ignoring).fault == too_slow
    catching = """
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
    """
    assert judge(sandbox, catching).fault == too_slow
    threads = """
        import threading
        def work():
            while True:
                pass
        for _ in range(4):
            threading.Thread(target=work).start()
    """
    assert run(sandbox, threads).fault == too_slow
    assert judge(sandbox, "def double(x):\n    while True: x += 1").fault == too_slow
    assert run(sandbox, "import re\nre.match('(a+)+$', 'a' * 40 + 'b')").fault == too_slow


def test_time_by_the_clock(sandbox: Sandbox) -> None:
    limits = Limits(cpu_s=9, wall_s=1.0, memory_mib=256)
    with Sandbox(limits, sandbox.backend) as short:
        late = "no end within 1 s by the clock"
        sleep = "import time\nwhile True:\n    time.sleep(1)"
        stop = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"
        assert short.run(sleep).fault == short.run(stop).fault == late
        assert short.run_tests(sleep, TESTS).fault == late
        assert (
            short.run_tests(
                f"def double(x):\n    {sleep.splitlines()[0]}; time.sleep(9)", TESTS
            ).fault
            == late
        )
        assert short.run("print(1)").output == "1\n"


def test_memory(sandbox: Sandbox) -> None:
    for source in (
        "x = bytearray(1 << 30)",
        "x = []\nwhile True:\n    x.append('a' * 1000000)",
        "import mmap\nx = [mmap.mmap(-1, 100000000) for _ in range(9)]",
        "x = 10 ** 10 ** 9",
    ):
        ended = run(sandbox, source)
        assert ended.fault in ("exit code 1", "no end within 1 s on the processor")
        assert "x = 10" in source or ended.errors.splitlines()[-1].startswith(
            ("MemoryError", "OSError")
        )
    assert judge(sandbox, "def double(x):\n    return [0] * 10**9").fault.startswith("MemoryError")
    big = "def double(x):\n    return 'a' * 10**8"
    assert not judge(sandbox, big).passed


def test_threads(sandbox: Sandbox) -> None:
    source = """
        import threading, time
        threading.stack_size(32768)
        count = 0
        try:
            while count < 5000:
                threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
                count += 1
        except RuntimeError:
            pass
        print(count)
    """
    if os.geteuid() != 0 and sandbox.backend == "landlock":
        pytest.skip("Landlock without root does not count threads")
    assert LIMITS.num_threads // 2 < int(run(sandbox, source).output) < LIMITS.num_threads


def test_output(sandbox: Sandbox) -> None:
    most = "wrote 1 MiB, the most it may"
    ended = run(sandbox, "while True:\n    print('x' * 1000)")
    assert ended.fault == most
    assert len(ended.output) == 1 << 20
    ignoring = """
        import os
        while True:
            try:
                os.write(1, b"x" * 1000)
            except OSError:
                pass
    """
    assert run(sandbox, ignoring).fault == most
    assert "File too large" in run(sandbox, "import os\nos.ftruncate(1, 1 << 40)").errors
    flood = "def double(x):\n    while True: print('x' * 1000)"
    assert not judge(sandbox, flood).passed


def test_files(bubblewrap: Sandbox) -> None:
    for write, most in (("file.write('x' * 10**6)", 4), ("file.write('')", 1000)):
        source = f"""
            count = 0
            try:
                while count < 10**5:
                    with open(str(count), "w") as file:
                        {write}
                    count += 1
            except OSError as error:
                print(count, error.strerror)
        """
        count, _, words = run(bubblewrap, source).output.partition(" ")
        assert int(count) <= most
        assert words == "No space left on device\n"
    assert run(bubblewrap, "import os\nprint(os.listdir('.'), os.getcwd())").output == "[] /tmp\n"
    assert "File too large" in run(bubblewrap, "open('x', 'w').truncate(1 << 40)").errors


def test_files_are_not_written_with_landlock(sandbox: Sandbox) -> None:
    if sandbox.backend == "landlock":
        for place in (".", "/tmp", "/dev/shm", "/var/tmp"):
            ended = run(sandbox, f"open('{place}/fretsaw-escaped', 'w')")
            assert "PermissionError" in ended.errors


def test_open_files(sandbox: Sandbox) -> None:
    source = "files = []\nwhile True:\n    files.append(open('/dev/null'))"
    assert "Too many open files" in run(sandbox, source).errors


# --- how a program may end ------------------------------------------------------------------------

ENDS = {
    "import os\nos._exit(0)": "ended before its tests did",
    "import os\nos._exit(7)": "exit code 7",
    "import os\nos.abort()": "killed by SIGABRT",
    "import ctypes\nctypes.string_at(0)": "killed by SIGSEGV",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL",
    "import os\nos.closerange(0, 1000)": "ended before its tests did",
    "import sys\nsys.exit(0)": "SystemExit: 0",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "def f(n): return f(n + 1)\nf(0)": "RecursionError",
    "import sys\nsys.setrecursionlimit(10**9)\n"
    "class A:\n    def __getattr__(self, name): return getattr(self, name + 'a')\n"
    "A().b": "",
    "x = []\nfor _ in range(10**6): x = [x]\ndel x\ndef double(n):\n    x = []\n"
    "    for _ in range(10**5): x = [x]\n    return x": "RecursionError",
}


@pytest.mark.parametrize("source", ENDS)
def test_a_program_that_ends_is_wrong(sandbox: Sandbox, source: str) -> None:
    verdict = judge(sandbox, source)
    assert not verdict.passed
    assert ENDS[source] in f"{verdict.fault}"


# --- forged verdicts ------------------------------------------------------------------------------

FORGERIES = {
    "prints": "print('PASS'); print('{\"failed\": null}')",
    "equal to everything": """
        class Equal:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __sub__(self, other): return 0
            def __bool__(self): return True
            def __hash__(self): return 0
        def double(x): return Equal()
    """,
    "a number equal to everything": """
        class Number(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def double(x): return Number(5)
    """,
    "a list equal to everything": """
        class Items(list):
            def __eq__(self, other): return True
        def double(x): return Items([5])
    """,
    "another AssertionError": """
        import builtins
        class AssertionError(BaseException): pass
        builtins.AssertionError = AssertionError
        def double(x): return 5
    """,
    "other built-ins": """
        import builtins
        builtins.compile = lambda *a, **k: "pass"
        builtins.exec = builtins.eval = lambda *a, **k: None
        builtins.isinstance = lambda *a: True
        def double(x): return 5
    """,
    "a trace": """
        import sys, threading
        def trace(frame, event, argument):
            frame.f_trace_lines = False
            return trace
        sys.settrace(trace); threading.settrace(trace); sys.setprofile(trace)
        def double(x): return 5
    """,
    "an end that says well": """
        import atexit, os
        atexit.register(os._exit, 0)
        def double(x): os._exit(0)
    """,
    "an end at the first test": "import sys\ndef double(x): sys.exit(0)",
    "an error that tests may await": "def double(x): raise StopIteration",
    "writes to every file": """
        import json, os
        words = json.dumps({"failed": None, "line": "", "error": "", "is_lost": False}).encode()
        for fd in range(64):
            for offset in (None, 0):
                try:
                    os.write(fd, words) if offset is None else os.pwrite(fd, words, 0)
                except OSError: pass
    """,
    "answers before it is asked": """
        import json
        from fretsaw.sandbox import values
        def send(self, message):
            pass
        import os
        for value in (None, {"object": 0}, True, True):
            body = json.dumps(["value", value]).encode()
            os.write(5, len(body).to_bytes(8, "big") + body)
        def double(x): return 5
    """,
    "looks through the interpreter": """
        import gc, sys
        frame = sys._getframe()
        while frame:
            for name, value in list(frame.f_locals.items()):
                if "double(" in repr(value)[:10**5]: print("found", name)
                if hasattr(value, "passed"): value.passed = True
            frame = frame.f_back
        for thing in gc.get_objects():
            if isinstance(thing, dict) and "failed" in thing: thing["failed"] = None
        def double(x): return 5
    """,
    "changes the way that it answers": """
        from fretsaw.sandbox import values, program
        program.encode = values.encode = lambda value, numbered: True
        def double(x): return 5
    """,
    "junk": """
        import os
        os.write(5, b"\\x00" * 8 + b"{}" * 1000)
    """,
    "a message without end": """
        import os
        os.write(5, b"\\xff" * 8)
        while True: os.write(5, b"1" * 65536)
    """,
    "nested without end": """
        import os
        body = b'["value",' + b'{"list":[' * 10**5
        os.write(5, len(body).to_bytes(8, "big") + body)
    """,
    "constructors with what breaks them": """
        from fretsaw.sandbox import program
        program.encode = lambda value, numbered: {"range": ["a", 2, 0]}
        def double(x): return 5
    """,
    "a module of its own": """
        import sys, types
        tests = types.ModuleType("builtins")
        def double(x): return tests
    """,
}


@pytest.mark.parametrize("how", FORGERIES)
def test_no_verdict_is_forged(sandbox: Sandbox, how: str) -> None:
    verdict = judge(sandbox, FORGERIES[how])
    assert not verdict.passed
    assert verdict.fault


def test_arithmetic_is_not_the_programs(sandbox: Sandbox) -> None:
    source = textwrap.dedent(FORGERIES["equal to everything"])
    for test in (
        "assert abs(double(2) - 4) < 0.1",
        "assert double(2) in [4]",
        "assert 4 in {double(2): 1}",
        "assert [double(2)] == [4]",
        "assert not (double(2) != 4)",
        "assert double(2) >= 4",
        "assert {4} == {double(2)}",
    ):
        assert not sandbox.run_tests(source, [test]).passed
    ends = "def double(x): raise StopIteration"
    assert not sandbox.run_tests(ends, ["assert all(map(double, [1, 2]))"]).passed


def test_tests_are_not_to_be_found(sandbox: Sandbox) -> None:
    """Neither in the interpreter's objects nor in the memory of its process."""
    source = """
        import ctypes, gc, sys
        found = [repr(thing) for thing in gc.get_objects() if isinstance(thing, (str, list, dict))]
        mark = "".join(["ma", "rk", "er"])
        print(sum(mark in text for text in found))
        def double(x):
            frame, seen = sys._getframe(), []
            while frame:
                seen += [repr(value) for value in frame.f_locals.values()]
                frame = frame.f_back
            return sum("ma" + "rker" in text for text in seen)
    """
    tests = ["marker = 'marker'\nassert double(2) == 0"]
    assert sandbox.run_tests(textwrap.dedent(source), tests) == Verdict(True)
    assert run(sandbox, source).output == "0\n"


def test_the_next_program_finds_nothing_of_the_last(sandbox: Sandbox) -> None:
    run(
        sandbox, "x = 'lastword'; print(x)\nimport builtins, math\nmath.pi = 3\nbuiltins.len = None"
    )
    source = """
        import gc, math
        things = gc.get_objects()
        print(math.pi, len([1]), any("".join(reversed("drowtsal")) in repr(t) for t in things))
    """
    assert run(sandbox, source).output == "3.141592653589793 1 False\n"


# --- under load -----------------------------------------------------------------------------------


def test_verdicts_are_the_same_under_load(sandbox: Sandbox) -> None:
    """Six sandboxes at one time on whatever processors there are, good and bad by turns."""
    programs = [GOOD, WRONG, "import os\nos._exit(0)", "def double(x):\n    while True: pass", GOOD]
    alone = [sandbox.run_tests(source, TESTS) for source in programs]
    found: list[list[Verdict]] = []

    def work() -> None:
        with Sandbox(LIMITS, sandbox.backend) as own:
            found.append([own.run_tests(source, TESTS) for source in programs])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 6
    assert [verdict.passed for verdict in alone] == [True, False, False, False, True]
