"""Function calls as models write them -> calls: Python's syntax, or JSON. Nothing is evaluated.

Read are `<TOOLCALL>[f(a=1)]</TOOLCALL>` and the same with `{"name": .., "arguments": ..}`, either
without the tags or in a code fence, and OpenAI's `tool_calls`. Python's values are read as BFCL
reads them (`bfcl_eval.model_handler.utils.ast_parse`): a name and what is no literal is its text.
"""

import ast
import operator
import re
from typing import Any

from fretsaw.chat.tools import ToolCall, read_arguments
from fretsaw.stage.json_text import NotJson, parse_json

MAX_CHARACTERS = 100_000
MAX_DEPTH = 60  # of nested values

_TAGGED = re.compile(r"<TOOLCALL>(.*?)</TOOLCALL>", re.DOTALL)
_FENCED = re.compile(r"```\w*\s(.*?)```", re.DOTALL)
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class NotCalls(ValueError):
    """A text that makes no function calls; says what is in the way."""


def read_calls(text: str) -> list[ToolCall]:
    """Return the calls that a text makes, in its order; raise `NotCalls` where it makes none.

    What stands around the tags, or else around one code fence, is not read.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotCalls(f"{len(text)} characters; calls have {MAX_CHARACTERS} at most")
    parts = _TAGGED.findall(text) or _FENCED.findall(text)[:1] or [text]
    return [call for part in parts for call in _read(part.strip())]


def _read(text: str) -> list[ToolCall]:
    try:
        listed = parse_json(text)
    except NotJson:
        return _python_calls(text)
    except ValueError as error:
        raise NotCalls(str(error)) from None
    if isinstance(listed, dict):
        listed = listed.get("tool_calls", [listed])
    if not isinstance(listed, list):
        raise NotCalls(f"{type(listed).__name__}, no list of calls")
    return [_json_call(call) for call in listed]


def _json_call(call: Any) -> ToolCall:
    match call:
        case {"name": str(name), "arguments": given} | {
            "function": {"name": str(name), "arguments": given}
        }:
            try:
                return ToolCall(name, read_arguments(given))
            except ValueError as error:
                raise NotCalls(f"arguments of {name}: {error}") from None
    raise NotCalls(f"no call, with name and arguments: {str(call)[:80]}")


# --- Python's syntax ------------------------------------------------------------------------------


def _python_calls(text: str) -> list[ToolCall]:
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise NotCalls(f"no calls: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError) as error:  # a null byte, a parser's stack
        raise NotCalls(f"no calls: {error or 'nested too deep'}") from None
    _check_depth(tree)
    listed = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    return [_python_call(node) for node in listed]


def _check_depth(tree: ast.expr) -> None:
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise NotCalls(f"nested more than {MAX_DEPTH} deep")


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise NotCalls(f"no call: {ast.unparse(node)[:80]}")
    name = ast.unparse(node.func)
    if not re.fullmatch(r"[\w.]+", name):
        raise NotCalls(f"no function's name: {name[:80]}")
    if node.args:
        raise NotCalls(f"{name}: an argument without a name")
    names = [keyword.arg for keyword in node.keywords]
    if None in names or len(set(names)) < len(names):
        raise NotCalls(f"{name}: ** or an argument twice")
    return ToolCall(name, {str(k.arg): _value(k.value) for k in node.keywords})


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.Name(id=name):
            return name
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _number(operand)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp():
            return _number(node)
        case ast.Call(keywords=keywords) if keywords:
            call = _python_call(node)
            return {call.name: call.arguments}
        case ast.Call() | ast.Subscript() | ast.Attribute():
            return ast.unparse(node)
    raise NotCalls(f"no value: {ast.unparse(node)[:80]}")


def _key(node: ast.expr | None) -> Any:
    if not isinstance(node, ast.Constant | ast.Name):
        raise NotCalls("a key that is no text or number")
    return _value(node)


def _number(node: ast.expr) -> int | float:
    """Return the value of arithmetic on numbers; a power could be of any length, so it is none."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            try:
                return _ARITHMETIC[type(op)](_number(left), _number(right))
            except (ZeroDivisionError, OverflowError) as error:
                raise NotCalls(f"{ast.unparse(node)[:80]}: {error}") from None
    raise NotCalls(f"no number: {ast.unparse(node)[:80]}")
