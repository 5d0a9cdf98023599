"""The process of a program under test: it runs the program, and then what tests ask of it.

Nothing in this process is trusted once the program has begun. It holds no test, no expected value,
and no file by which a verdict could be given.
"""

import operator
import os
import random
import sys
import traceback
from types import ModuleType
from typing import Any

from fretsaw.sandbox.values import Line, decode, encode

_OPERATIONS = {
    "call": lambda called, arguments, named: called(*arguments, **dict(named)),
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
}


def run(source: str) -> None:
    """Run the program as a script, to its end."""
    module = _prepare("__main__")
    try:
        exec(compile(source, "program.py", "exec"), vars(module))
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


def serve(source: str, line: Line) -> None:
    """Run the program as a module, then do what tests ask of it until they are done."""
    objects: list[Any] = []
    numbers: dict[int, int] = {}

    def numbered(value: Any) -> dict[str, Any]:
        if isinstance(value, ModuleType):
            return {"module": value.__name__}
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return {"object": numbers[id(value)]}

    def answer(operation: str, operands: Any) -> Any:
        first, *rest = decode(operands, lambda _, number: objects[number])
        if operation == "name":
            return vars(module)[first]
        return _OPERATIONS[operation](first, *rest)

    module = _prepare("program")
    try:
        exec(compile(source, "program.py", "exec"), vars(module))
        line.send(["value", None])
    except BaseException as error:
        traceback.print_exc()
        line.send(["raised", type(error).__name__, _words(error)])
        return
    while True:
        operation, operands = line.receive()
        try:
            message = ["value", encode(answer(operation, operands), numbered)]
        except BaseException as error:
            message = ["raised", type(error).__name__, _words(error)]
        line.send(message)


def _prepare(name: str) -> ModuleType:
    """Return the module that a program runs in; what it draws at random is the same every time."""
    random.seed(0)
    os.environ.clear()
    sys.argv = ["program.py"]
    sys.set_int_max_str_digits(0)
    module = ModuleType(name)
    sys.modules[name] = module
    return module


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""
