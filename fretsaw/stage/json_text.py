"""JSON that others wrote -> values; what is wrong with it is a ValueError, never another error.

One rule for rows of data and bodies of requests: what is returned can be walked by recursion and
written again as JSON in UTF-8. So numbers are finite, keys stand once, strings hold whole
characters, and lists and objects are nested no deeper than MAX_DEPTH.
"""

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 200
MAX_DIGITS = 4300  # Python's own limit for reading and writing an integer


class NotJson(ValueError):
    """The text is no JSON at all; how it should have been written is for the reader to say."""


class LoneSurrogate(ValueError):
    """A string holds half of a surrogate pair; `where` is its place (messages[0].content)."""

    def __init__(self, where: str):
        self.where = where
        super().__init__(
            f"{where or 'the text'} holds half of a surrogate pair, which is no character; write "
            "whole characters"
        )


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises `NotJson` for text that is none, ValueError with the remedy for a value beyond the rule.
    """
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise NotJson(f"not JSON ({error.msg}, {line}column {error.colno})") from None
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        raise _too_deep()
    if ("\\ud" in text or "\\uD" in text) and (where := lone_surrogate(value)) is not None:
        raise LoneSurrogate(where)
    return value


def lone_surrogate(value: Any) -> str | None:
    """Return where half of a surrogate pair stands, such as `messages[0].content`; else None."""
    left = [("", value)]
    while left:
        where, one = left.pop()
        if isinstance(one, str) and not _is_whole(one):
            return where
        if isinstance(one, list):
            left += reversed([(f"{where}[{i}]", item) for i, item in enumerate(one)])
        if isinstance(one, dict):
            if broken := next((key for key in one if not _is_whole(key)), None):
                return f"{where}.{broken!a}".removeprefix(".")
            named = [(f"{where}.{key}".removeprefix("."), item) for key, item in one.items()]
            left += reversed(named)
    return None


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_too_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level:
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        depth += 1
        if depth > MAX_DEPTH:
            return True
    return False


def _too_deep() -> ValueError:
    return ValueError(f"nested too deeply, over {MAX_DEPTH} levels; flatten it")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!a} stands twice in an object; keep one")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large for a number; write a smaller one")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too long; write it as a string")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number; write null or a number")


DECODER = json.JSONDecoder(  # of a value that stands within a text; `parse_json` checks the rest
    object_pairs_hook=_object,
    parse_float=_finite,
    parse_int=_integer,
    parse_constant=_refuse_constant,
)
