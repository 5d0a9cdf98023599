"""Whether an answer's function calls are the expected ones, compared as BFCL compares them.

The rules are those of the Berkeley Function Calling Leaderboard's AST checker for Python
(`bfcl_eval.eval_checker.ast_eval.ast_checker`, 2026.3.23). Known oddities of it are kept, since its
figures are what others publish: nested values are checked one level deep, and an empty list stands
for an argument that may be left out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fretsaw.chat.tools import ToolCall
from fretsaw.grade.call_text import NotCalls, read_calls
from fretsaw.grade.grader import Expectation, Grade

ANY = "any"  # expected where a call must be made, whichever
TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_LISTS = ("array", "tuple")
LEFT_OUT = ""  # among an argument's possible values: it may be left out


def grade_calls(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the answer makes the expected calls in any order, and no others.

    `calls` is a list of `{name: {argument: [possible values]}}`, `"any"` where some call must be
    made, or an empty list where none may be; `functions` are their descriptions as BFCL has them.
    Raises ValueError for an expectation of another form.
    """
    functions = _functions(expected)
    wanted = _wanted(expected, functions)
    try:
        made, fault = read_calls(answer), ""
    except NotCalls as error:
        made, fault = [], str(error)
    if wanted == ANY:
        return Grade(float(bool(made)), fault or _shown(made))
    if not wanted:
        return Grade(float(not made), _shown(made) or "no call")
    fault = fault or calls_fault(made, wanted, functions)
    return Grade(float(not fault), fault or _shown(made))


def calls_fault(
    made: Sequence[ToolCall],
    wanted: Sequence[Mapping[str, Any]],
    functions: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return what is wrong with calls, nothing where each matches its own of those wanted."""
    if len(made) != len(wanted):
        return f"{len(made)} calls, not {len(wanted)}: {_shown(made)}"
    left = list(made)
    for one in wanted:
        ((name, possible),) = one.items()
        faults = [_call_fault(call, functions[name], possible) for call in left]
        if "" not in faults:
            return faults[0] if len(faults) == 1 else f"no call is {name} as wanted; {faults[0]}"
        del left[faults.index("")]
    return ""


def _call_fault(call: ToolCall, function: Mapping[str, Any], possible: Mapping[str, list]) -> str:
    name = function["name"]
    if call.name not in (name, name.replace(".", "_")):  # OpenAI's names have no dots
        return f"{call.name} is not {name}"
    parameters = function["parameters"]["properties"]
    for argument in function["parameters"].get("required", ()):
        if argument not in call.arguments:
            return f"{name}: no {argument}"
    for argument, value in call.arguments.items():
        if argument not in parameters or argument not in possible:
            return f"{name}: {argument} is unexpected"
        if fault := _value_fault(value, possible[argument], parameters[argument]):
            return f"{name}: {argument} {fault}"
    for argument, values in possible.items():
        if argument not in call.arguments and LEFT_OUT not in values:
            return f"{name}: no {argument}"
    return ""


# --- one value ------------------------------------------------------------------------------------


def _value_fault(value: Any, possible: list, parameter: Mapping[str, Any]) -> str:
    kind = TYPES[parameter["type"]]
    item = TYPES[parameter["items"]["type"]] if parameter["type"] in _LISTS else None
    if isinstance(value, tuple) and parameter["type"] == "tuple":
        value = list(value)
    if type(value) is int and parameter["type"] == "float":
        value = _as_float(value)
    is_name = _possible_type(possible) not in (None, kind)  # of a variable, so its text is wanted
    if type(value) is not kind:
        if type(value) is not _possible_type(possible):
            return f"is {_cut(value)}, no {parameter['type']}"
        is_name = True
    elif (
        isinstance(value, list)
        and item
        and not any(_are_items(value, one, item) for one in possible)
    ):
        return f"is {_cut(value)}, no {parameter['type']} of {parameter['items']['type']}"
    return "" if _is_possible(value, possible, item, is_name) else f"is {_cut(value)}"


def _as_float(value: int) -> int | float:
    return value if abs(value) > 10**300 else float(value)


def _possible_type(possible: list) -> type | None:
    return next((type(one) for one in possible if one != LEFT_OUT), None)


def _are_items(values: list, possible: Any, item: type) -> bool:
    """Whether the items of a list have the type they should have, or that of a possible list's."""
    if not isinstance(possible, list):
        return True
    return all(type(value) in (item, _possible_type(possible)) for value in values)


def _is_possible(value: Any, possible: list, item: type | None, is_name: bool) -> bool:
    if is_name:
        return value in possible
    match value:
        case dict():
            return any(_is_dict(value, one) for one in possible if isinstance(one, dict))
        case list() if item is dict:
            return any(_are_dicts(value, one) for one in possible)
        case list():
            return _plain_items(value) in [_plain_items(one) for one in possible]
        case _:
            return _plain(value) in map(_plain, possible)


def _are_dicts(values: list, possible: Sequence[Any]) -> bool:
    return len(values) == len(possible) and all(
        isinstance(value, dict) and isinstance(one, dict) and _is_dict(value, one)
        for value, one in zip(values, possible, strict=True)
    )


def _is_dict(value: Mapping[str, Any], possible: Mapping[str, list]) -> bool:
    return all(
        key in possible and _plain(one) in map(_plain, possible[key]) for key, one in value.items()
    ) and all(key in value or LEFT_OUT in values for key, values in possible.items())


def _plain_items(values: Sequence[Any]) -> list:
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """Return a text without case, spaces and the signs ,./-_*^ that dates and names vary in."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


# --- what is expected, and what is shown ----------------------------------------------------------


def _functions(expected: Expectation) -> dict[str, Mapping[str, Any]]:
    functions: dict[str, Mapping[str, Any]] = {}
    for function in expected["functions"]:
        match function:
            case {"name": str(name), "parameters": {"properties": dict(parameters)}}:
                functions[name] = function
                for parameter, described in parameters.items():
                    _check_type(f"function {name!r}: {parameter}", described)
            case _:
                raise ValueError(f"functions: {_cut(function)}: give name and parameters")
    return functions


def _check_type(where: str, described: Any) -> None:
    match described:
        case {"type": "array" | "tuple", "items": {"type": kind}} if kind in TYPES:
            return
        case {"type": kind} if kind in TYPES and kind not in _LISTS:
            return
    raise ValueError(
        f"{where}: {_cut(described)}; give a type ({', '.join(TYPES)}), a list's items theirs"
    )


def _wanted(expected: Expectation, functions: Mapping[str, Any]) -> Any:
    calls = expected["calls"]
    if calls == ANY:
        return ANY
    if not isinstance(calls, list):
        raise ValueError(f"calls {_cut(calls)}: write a list of calls, or {ANY!r}")
    for call in calls:
        if not isinstance(call, dict) or len(call) != 1 or not set(call) <= set(functions):
            raise ValueError(f"calls: {_cut(call)}: write {{a function's name: its arguments}}")
        for name, possible in call.items():
            if not isinstance(possible, dict) or not all(
                isinstance(values, list) for values in possible.values()
            ):
                raise ValueError(f"calls: {name}: write {{argument: [possible values]}}")
    return calls


def _shown(calls: Sequence[ToolCall]) -> str:
    written = (
        f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in calls
    )
    shown = "; ".join(written)
    return shown if len(shown) <= 400 else f"{shown[:400]}..."


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
