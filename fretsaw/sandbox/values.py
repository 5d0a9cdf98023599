"""Plain values between a program under test and its tests, as bytes that build nothing else.

A list is {"list": [...]}, and so on; what is not plain is {"object": n}, a number that stands for
it on the program's side. A class of the program's own that derives from a plain one travels as the
plain one: no `__eq__` of the program's comes along.
"""

import builtins
import json
import os
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

Numbered = Callable[[Any], dict[str, Any]]  # says what stands for an object that is not plain
Opened = Callable[[str, Any], Any]  # what is meant by it

_MAX_BYTES = 1 << 26


def encode(value: Any, numbered: Numbered) -> Any:
    """Return what JSON can hold of a value; raises RecursionError for one that holds itself."""

    def each(values: Any) -> list[Any]:
        return [encode(one, numbered) for one in values]

    match value:
        case None | bool():
            return value
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case str():
            return str.__str__(value)
        case list():
            return {"list": each(list.__iter__(value))}
        case tuple():
            return {"tuple": each(tuple.__iter__(value))}
        case dict():
            return {"dict": each(pair for pair in dict.items(value))}
        case set():
            return {"set": each(set.__iter__(value))}
        case frozenset():
            return {"frozenset": each(frozenset.__iter__(value))}
        case deque():
            return {"deque": each(deque.__iter__(value))}
        case bytes() | bytearray():
            return {type(value).__name__: value.decode("latin-1")}
        case complex():
            return {"complex": [value.real, value.imag]}
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case Decimal() | Fraction():
            return {type(value).__name__: str(value)}
        case type() if vars(builtins).get(value.__name__) is value:
            return {"type": value.__name__}
    return numbered(value)


def decode(encoded: Any, opened: Opened) -> Any:
    """Return the value; raises ValueError, or what a constructor does, for what none encoded."""
    if not isinstance(encoded, dict):
        return encoded
    ((kind, content),) = encoded.items()
    match kind:
        case "list" | "tuple" | "dict" | "set" | "frozenset" | "deque":
            build = {"list": list, "tuple": tuple, "dict": dict, "set": set, "deque": deque}
            return build.get(kind, frozenset)(decode(one, opened) for one in content)
        case "bytes":
            return content.encode("latin-1")
        case "bytearray":
            return bytearray(content.encode("latin-1"))
        case "complex":
            return complex(*content)
        case "range":
            return range(*content)
        case "Decimal":
            return Decimal(content)
        case "Fraction":
            return Fraction(content)
        case "type":
            return vars(builtins)[content]
    return opened(kind, content)


class Line:
    """One end of two pipes that carries messages, each after its length."""

    def __init__(self, read_fd: int, write_fd: int):
        self._read_fd, self._write_fd = read_fd, write_fd

    def send(self, message: Any) -> None:
        """Send what JSON can hold; raises OSError where the other end is gone."""
        body = json.dumps(message, check_circular=False).encode()
        rest = memoryview(len(body).to_bytes(8, "big") + body)
        while rest:
            rest = rest[os.write(self._write_fd, rest) :]

    def receive(self) -> Any:
        """Return the next message; raises EOFError where the other end is gone.

        Raises ValueError for one that is too long, or is no message.
        """
        length = int.from_bytes(self._exactly(8), "big")
        if length > _MAX_BYTES:
            raise ValueError(f"a value of {length} bytes; {_MAX_BYTES} is the most")
        return json.loads(self._exactly(length))

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length > 0:
            part = os.read(self._read_fd, min(length, 1 << 20))
            if not part:
                raise EOFError("the other end is gone")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
