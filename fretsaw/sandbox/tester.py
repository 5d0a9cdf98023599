"""The process of the tests: they run here, apart from the program, and ask it for values.

A name that the tests use and do not define stands for the program's object of that name. The
program sees the arguments that it is called with and no more of a test, and it answers with plain
values, which are compared here. An object of the program's own equals nothing but itself, and takes
part in no arithmetic.
"""

import builtins
import importlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fretsaw.sandbox.values import Line, decode, encode


class ProgramLost(BaseException):
    """The program's process is gone; no `except Exception` of a test takes it for an error."""


class ProgramError(Exception):
    """The program raised an exception of a class that only it knows."""


@dataclass(frozen=True)
class Finding:
    """What became of the tests; `failed` is the first that failed, None where none did."""

    failed: int | None
    line: str = ""  # of the test, at which it failed
    error: str = ""  # the last line of its exception
    is_lost: bool = False  # the program's process was gone


class Program:
    """The program, as its tests see it."""

    def __init__(self, line: Line):
        self._line = line

    def ask(self, operation: str, *operands: Any) -> Any:
        """Return what the program answers, or raise what it raised."""
        try:
            self._line.send([operation, encode(operands, _numbered)])
            return self._answer(operation)
        except (OSError, EOFError):
            raise ProgramLost from None

    def start(self) -> None:
        """Wait until the program has run, before it is asked; raises what it raised."""
        try:
            self._answer("start")
        except (OSError, EOFError):
            raise ProgramLost from None

    def _answer(self, operation: str) -> Any:
        match self._line.receive():
            case ["value", encoded]:
                return decode(encoded, self._opened)
            case ["raised", str(name), str(words)]:
                raise _error(name, words, operation)
            case _:
                raise ProgramLost

    def _opened(self, kind: str, content: Any) -> Any:
        if kind == "module" and content in sys.stdlib_module_names:
            return importlib.import_module(content)
        return Remote(self, int(content))


class Remote:
    """An object of the program's: what can be done with it is what its methods say."""

    __slots__ = ("_number", "_program")

    def __init__(self, program: Program, number: int):
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Return what the program's function returns for copies of the arguments."""
        return self._program.ask("call", self, arguments, tuple(named.items()))

    def __getattr__(self, name: str) -> Any:
        return self._program.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask("item", self, key)

    def __iter__(self) -> Iterator[Any]:
        items = self._program.ask("iter", self)
        if not isinstance(items, Remote):
            raise TypeError("the program's object has no iterator of its own")
        while True:
            try:
                item = self._program.ask("next", items)
            except StopIteration:
                return
            yield item

    def __next__(self) -> Any:
        return self._program.ask("next", self)

    def __len__(self) -> int:
        return self._program.ask("len", self)

    def __bool__(self) -> bool:
        return self._program.ask("bool", self)

    def __str__(self) -> str:
        return self._program.ask("str", self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class Names(dict[str, Any]):
    """The global names of the tests; what they lack is the program's.

    Python's own names are Python's, but for the one under test: a program that defines `sorted`
    does not sort for its tests.
    """

    def __init__(self, program: Program, entry_point: str | None):
        super().__init__(__name__="tests")
        self._program, self._entry_point = program, entry_point

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and name != self._entry_point:
            raise KeyError(name)
        return self._program.ask("name", name)


def run_tests(line: Line, setup: str, tests: Sequence[str], entry_point: str | None) -> Finding:
    """Run the tests in their order, up to the first that fails."""
    sys.set_int_max_str_digits(0)
    program = Program(line)
    names = Names(program, entry_point)
    number, text = -1, ""
    try:
        program.start()
        for number, text in enumerate([setup, *tests], start=-1):  # noqa: B007
            exec(compile(text, "<test>", "exec"), names)
    except ProgramLost:
        return Finding(number, _line(text), "the program's process ended", is_lost=True)
    except BaseException as error:
        return Finding(number, _line(text, error), _last_line(error))
    return Finding(None)


def _numbered(value: Any) -> dict[str, Any]:
    if not isinstance(value, Remote):
        raise TypeError(f"a test passes a {type(value).__name__}, which cannot leave it")
    return {"object": value._number}


def _error(name: str, words: str, operation: str) -> Exception:
    """Return what the program raised. Only the end of an iterator may end one that a test reads."""
    kind = getattr(builtins, name, None)
    is_known = isinstance(kind, type) and issubclass(kind, Exception)
    if name == "StopIteration" and operation != "next":
        is_known = False
    if operation == "name" and name == "KeyError":
        return KeyError(words)
    try:
        return kind(words) if is_known else ProgramError(f"{name}: {words}")  # pyright: ignore
    except TypeError:  # of those that take more than words
        return ProgramError(f"{name}: {words}")


def _line(text: str, error: BaseException | None = None) -> str:
    """Return the test's line at which it failed; its first where none is known."""
    lines = text.splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    numbers = [frame.lineno for frame in frames if frame.filename == "<test>" and frame.lineno]
    return lines[min(numbers[-1], len(lines)) - 1].strip() if numbers else lines[0].strip()


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
