"""A checkpoint's own chat template, run as transformers runs it: sandboxed, with the same helpers.

A template is a program by whoever made the checkpoint. The sandbox lets it read the conversation
and write text; what it raises, and what it must not reach for, comes back as a ValueError.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

_SWITCHES = ("enable_thinking", "thinking")  # what templates call the variable for reasoning


class TemplateRefused(ValueError):
    """The template refuses a conversation, in its own words."""


class ChatTemplate:
    """A template ready to render."""

    def __init__(self, source: str, *, variables: Mapping[str, Any] = {}, where: str = "template"):
        """Compile; `variables` are what it may name besides, such as `bos_token`.

        Raises ValueError where it is no Jinja, naming `where` it stands and the line.
        """
        self.source, self._variables, self._where = source, dict(variables), where
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"{where}, line {error.lineno}: no Jinja ({error.message}); take the template from "
                "the original checkpoint"
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Return a conversation as the template writes it.

        Raises `TemplateRefused` with the template's own words where it raises one, and ValueError
        where it fails or reaches beyond the sandbox.
        """
        try:
            return self._template.render(
                **self._variables,
                **variables,
                messages=_plain(messages),
                tools=_plain(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except _Raised as error:
            raise TemplateRefused(f"the chat template refuses this conversation: {error}") from None
        except SecurityError as error:
            raise ValueError(
                f"{self._where}: reaches beyond what a template may ({error}); it is not run"
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateRefused(
                f"the chat template fails on this conversation ({type(error).__name__}: {error}); "
                "give the turns in the order and with the fields that it knows"
            ) from None
        except (RecursionError, MemoryError) as error:
            raise ValueError(f"{self._where}: does not end ({error}); it is not run") from None


@cache
def switches(source: str) -> tuple[str, ...]:
    """Return the variables by which a template switches reasoning; none of one that is broken."""
    try:
        used = jinja2.meta.find_undeclared_variables(_environment().parse(source))
    except jinja2.TemplateSyntaxError:
        return ()
    return tuple(name for name in _SWITCHES if name in used)


def _plain(value: Any) -> Any:
    """Return a copy of plain lists and dicts, which a template can't use to change ours."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


class _Raised(jinja2.TemplateError):
    """What a template raises itself."""


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: around what the model writes, as it stands."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without Jinja's own escapes of HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise _Raised(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
