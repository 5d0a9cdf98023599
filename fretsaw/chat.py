"""Messages <-> token ids: the chat format, and the toggle between reasoning on and off.

The format is Llama 3's, as the Llama-Nemotron models use it: turns, each a header, the text, and an
end-of-turn token. Rendering gives spans of ids with their roles, so what is trained on is known by
construction and no text can turn into a control token. Reasoning stands in the answer itself:
`<think>\\n...\\n</think>\\n\\nanswer`. `chat_template.py` says the same in Jinja, id for id.

How a checkpoint is told the mode is its `Toggle`:

- v1 (Llama-Nemotron v1): the system turn begins with "detailed thinking on" or "... off";
- v1.5: "/no_think" or "/think" in the system text, which takes them out; off, the answer's header
  is followed by an empty trace;
- none: not at all, and no system turn but the user's own.

Tools stand in the system turn as `<AVAILABLE_TOOLS>`, calls in the answer as `<TOOLCALL>`, results
in a turn after it as `<TOOL_RESPONSE>`, each a JSON list. Source: the chat templates of
Llama-3.1-Nemotron-Nano-8B-v1 (results in a user turn each) and Llama-3.3-Nemotron-Super-49B-v1.5
(all results in one tool turn), both also in NVIDIA/Megatron-LM,
megatron/training/tokenizer/multimodal_tokenizer.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from fretsaw.tokenizer import Tokenizer

Mode = Literal["on", "off"]
MODES: tuple[Mode, ...] = ("on", "off")
Toggle = Literal["v1", "v1.5", "none"]
TOGGLES: tuple[Toggle, ...] = ("v1", "v1.5", "none")
ROLES = ("system", "user", "assistant", "tool")

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"
NO_REASONING = f"{OPEN_TAG}\n\n{CLOSE_TAG}\n\n"  # how v1.5 begins an answer with reasoning off
TOGGLE = "detailed thinking"  # v1, followed by " on" or " off"
THINK, NO_THINK = "/think", "/no_think"  # v1.5
SHIELDED_TAG = "</ think>"  # the closing tag in a system text, which holds a /think
HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
CONTROL_TOKENS = (HEADER, HEADER_END, TURN_END)
TEMPLATE = "chat_template.jinja"  # the file of a checkpoint
TOOLS, CALLS, RESULTS = (
    (f"<{name}>[", f"]</{name}>") for name in ("AVAILABLE_TOOLS", "TOOLCALL", "TOOL_RESPONSE")
)
# v1 was trained to know the format from its tags; the others are told.
TOOLS_INTRODUCTION = "These tools can be called:\n"
TOOLS_INSTRUCTION = (
    f'\n\nCall tools with {CALLS[0]}{{"name": name, "arguments": {{...}}}}, ...{CALLS[1]}. '
    f"What they return follows as {RESULTS[0]}...{RESULTS[1]}."
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_"  # none of these may follow v1's on or off


@dataclass(frozen=True)
class ToolCall:
    """A tool the model asks for; `id` is the client's name for the call and is not rendered."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; an answer's reasoning is its own field or inline in content."""

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Span:
    """Consecutive token ids of one role; a target is what the model learns to write."""

    role: str
    token_ids: tuple[int, ...]
    is_target: bool = False


# --- the toggle -----------------------------------------------------------------------------------


def mode_in(text: str, toggle: Toggle = "v1") -> Mode | None:
    """Return the mode that a system text asks for, None where it asks for none.

    Where a text says both, v1 takes the last and v1.5 /no_think.
    """
    if toggle == "v1":
        mode: Mode | None = None
        for part in text.lower().split(f"{TOGGLE} ")[1:]:
            for said in MODES:
                if part.startswith(said) and f"{part} "[len(said)] not in LETTERS:
                    mode = said
        return mode
    if toggle == "v1.5":
        text = text.replace(CLOSE_TAG, SHIELDED_TAG)
        return "off" if NO_THINK in text else "on" if THINK in text else None
    return None


def system_text(
    own: str, mode: Mode, *, toggle: Toggle = "v1", tools: Sequence[Mapping[str, Any]] = ()
) -> str | None:
    """Return what the system turn says, None where there is none; `own` is the user's text.

    Where the user's own text names a mode, the text wins.
    """
    own = own.strip()
    listed = ", ".join(_json(tool.get("function", tool)) for tool in tools)
    listed = f"{TOOLS[0]}{listed}{TOOLS[1]}"
    if toggle != "v1":
        listed = f"{TOOLS_INTRODUCTION}{listed}{TOOLS_INSTRUCTION}"
    if toggle == "v1.5":
        # The published template ends a system text with a blank line, and always has the turn.
        before = f"{_without_flags(own)}\n\n" if own or mode == "off" else ""
        return before + (listed if tools else "")
    parts = [f"{TOGGLE} {mode}"] if toggle == "v1" and mode_in(own) is None else []
    parts += [own] if own else []
    parts += [listed] if tools else []
    return "\n\n".join(parts) or None


def _without_flags(text: str) -> str:
    shielded = text.replace(CLOSE_TAG, SHIELDED_TAG).replace(NO_THINK, "").replace(THINK, "")
    return shielded.replace(SHIELDED_TAG, CLOSE_TAG).strip()


def toggle_of(folder: Path) -> Toggle:
    """Return how a checkpoint is told the mode.

    `reasoning_toggle` in tokenizer_config.json says so. Else its chat template does: one that knows
    /no_think is v1.5; one that knows v1's line, or takes traces out of a history as v1's do, is v1;
    any other has no toggle. Without a template it is v1 where the tokenizer has the format's
    tokens, as in a checkpoint tuned before templates were written.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    match settings.get("reasoning_toggle"):
        case "v1" | "v1.5" | "none" as toggle:
            return toggle
        case None:
            pass
        case other:
            raise ValueError(
                f"{path}: reasoning_toggle is {other!r}; write one of {', '.join(TOGGLES)}"
            )
    if not is_chat(Tokenizer.from_folder(folder)):
        return "none"
    template = _template_in(folder, settings.get("chat_template"))
    if template is None or TOGGLE in template:
        return "v1"
    return "v1.5" if NO_THINK in template else "v1" if CLOSE_TAG in template else "none"


def _template_in(folder: Path, setting: Any) -> str | None:
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return None if setting is None else json.dumps(setting, ensure_ascii=False)


# --- the tags -------------------------------------------------------------------------------------


def with_reasoning(reasoning: str, answer: str) -> str:
    """Return an answer as it is written with reasoning on."""
    return f"{OPEN_TAG}\n{reasoning}\n{CLOSE_TAG}\n\n{answer}"


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Return (reasoning, answer), told from the text alone; reasoning is None where none begins.

    Reasoning that is opened and never closed leaves an empty answer.
    """
    text = text.strip()
    if not text.startswith(OPEN_TAG):
        return None, text
    reasoning, _, answer = text.removeprefix(OPEN_TAG).partition(CLOSE_TAG)
    return reasoning.strip(), answer.strip()


def without_reasoning(text: str) -> str:
    """Return an earlier answer as it stands in a history: what follows its last closing tag.

    Of reasoning that was never closed nothing is left.
    """
    if CLOSE_TAG in text:
        return text.rpartition(CLOSE_TAG)[2].strip()
    return "" if text.lstrip().startswith(OPEN_TAG) else text.strip()


def format_fault(text: str, mode: Mode) -> str | None:
    """Say what is wrong with an answer's tags, None if nothing is.

    On: it starts with the opening tag, has exactly one pair, and an answer after it. Off: no tags.
    """
    num_open, num_closed = text.count(OPEN_TAG), text.count(CLOSE_TAG)
    if mode == "off":
        return "tags with reasoning off" if num_open or num_closed else None
    if not text.strip().startswith(OPEN_TAG):
        return f"does not start with {OPEN_TAG}"
    if (num_open, num_closed) != (1, 1):
        return f"{num_open} opening and {num_closed} closing tags"
    return None if split_reasoning(text)[1] else "no answer after the reasoning"


Piece = tuple[Literal["reasoning", "content"], str]


@dataclass
class ReasoningSplitter:
    """`split_reasoning` of a text that comes in pieces: each as soon as it is certain.

    The reasoning's pieces joined, and the content's, are what `split_reasoning` gives for the whole
    text: what may be the start of a tag is held back, and so is whitespace that may be the end.
    """

    _state: Literal["undecided", "reasoning", "content"] = "undecided"
    _held: str = ""
    _begun: bool = False  # whether text of this state has been given

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends inside the trace."""
        return self._state == "reasoning"

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is now certain, possibly nothing."""
        self._held += text
        if self._state == "undecided":
            begun = self._held.lstrip()
            if len(begun) < len(OPEN_TAG) and OPEN_TAG.startswith(begun):
                return []
            self._state = "reasoning" if begun.startswith(OPEN_TAG) else "content"
            self._held = begun.removeprefix(OPEN_TAG)
        if self._state == "content":
            return self._give(self._held)
        reasoning, tag, answer = self._held.partition(CLOSE_TAG)
        if not tag:
            return self._give(reasoning[: len(reasoning) - _len_started(reasoning, CLOSE_TAG)])
        pieces = self._give(reasoning)
        self._state, self._held, self._begun = "content", answer, False
        return pieces + self._give(answer)

    def flush(self) -> list[Piece]:
        """Return what is left at the end."""
        self._state = "content" if self._state == "undecided" else self._state
        return self._give(self._held)

    def _give(self, certain: str) -> list[Piece]:
        """Give a beginning of what is held, without the whitespace around the whole."""
        text = certain.rstrip()
        self._held = self._held[len(text) :]
        if not self._begun:
            text = text.lstrip()
        if not text:
            return []
        self._begun = True
        return [("reasoning" if self._state == "reasoning" else "content", text)]


def _len_started(text: str, tag: str) -> int:
    """Return how many characters at the end of a text may be the start of a tag."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


# --- tool calls -----------------------------------------------------------------------------------


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Return tool calls as an answer writes them; nothing for none."""
    written = (
        f'{{"name": {_json(call.name)}, "arguments": {_json(call.arguments)}}}' for call in calls
    )
    return f"{CALLS[0]}{', '.join(written)}{CALLS[1]}" if calls else ""


def parse_tool_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Return (the text without the calls, the calls); what cannot be read as calls stays text."""
    opening = CALLS[0].removesuffix("[")
    kept, calls, at = "", [], 0
    while (start := text.find(opening, at)) >= 0:
        found = _read_calls(text, start + len(opening))
        end = start + len(opening) if found is None else found[1]
        kept += text[at : end if found is None else start]
        calls += [] if found is None else found[0]
        at = end
    return (kept + text[at:]).strip(), tuple(calls)


def _read_calls(text: str, at: int) -> tuple[list[ToolCall], int] | None:
    """Return the calls that begin there and where their closing tag ends."""
    closing = CALLS[1].removeprefix("]")
    at += len(text[at:]) - len(text[at:].lstrip())
    try:
        listed, end = json.JSONDecoder().raw_decode(text, at)
    except (json.JSONDecodeError, RecursionError):  # what a model wrote, so nobody's error
        return None
    end += len(text[end:]) - len(text[end:].lstrip())
    calls = [_read_call(call) for call in listed] if isinstance(listed, list) else []
    known = [call for call in calls if call is not None]
    if not known or len(known) < len(calls) or not text.startswith(closing, end):
        return None
    return known, end + len(closing)


def _read_call(call: Any) -> ToolCall | None:
    match call:
        case {"name": str(name), "arguments": Mapping() as arguments}:
            return ToolCall(name, arguments)
        case {"name": str(name), "arguments": str(text)}:  # written once more, as some models do
            try:
                arguments = json.loads(text)
            except json.JSONDecodeError:
                return None
            return ToolCall(name, arguments) if isinstance(arguments, Mapping) else None
        case _:
            return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- rendering ------------------------------------------------------------------------------------


def add_control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Give a tokenizer the tokens of the format that it lacks; return those."""
    missing = [token for token in CONTROL_TOKENS if tokenizer.token_id(token) is None]
    tokenizer.add_special_tokens(missing)
    tokenizer.end_texts_with(TURN_END)
    return missing


def check_tags(tokenizer: Tokenizer) -> None:
    """Raise where a tokenizer cannot write the tags, so that no answer could keep the format."""
    text = with_reasoning("a", "b")
    written = tokenizer.decode(tokenizer.encode(text)).strip()
    if written != text:
        raise ValueError(
            f"chat: the tokenizer reads {text!r} back as {written!r}, so reasoning could not be "
            "told apart; use a checkpoint whose vocabulary has every byte"
        )


def is_chat(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the tokens of the format."""
    return all(tokenizer.token_id(token) is not None for token in CONTROL_TOKENS)


def prompt_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    mode: Mode,
    *,
    toggle: Toggle = "v1",
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Return the ids for the model to go on from: the conversation and the next answer's header.

    Raises ValueError where there is nothing to answer, where roles are unknown or out of order, and
    for a tokenizer without the format's tokens.
    """
    check_roles(messages)
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(
            f"messages: the last is the {messages[-1].role}'s, so there is nothing to answer; end "
            "with the user's turn or a tool's result"
        )
    answered = [*messages, Message("assistant")]
    spans = render(tokenizer, answered, mode, toggle=toggle, tools=tools)
    return tuple(id for span in spans[:-1] for id in span.token_ids)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    mode: Mode,
    *,
    toggle: Toggle = "v1",
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[Span]:
    """Return a conversation as spans; targets are the answers to learn, their end of turn included.

    `tools` are the functions that may be called, as OpenAI's API describes them. A mode named by
    the system text wins. Only a last answer keeps its reasoning: earlier ones stand as they do in a
    history. So with reasoning on the last answer alone is a target (the others would teach not to
    reason); with reasoning off every answer is, but for v1.5, whose history lacks the empty traces.
    """
    check_roles(messages)
    own = messages[0].content if messages[0].role == "system" else ""
    mode = mode_in(own, toggle) or mode
    is_history_learnt = mode == "off" and toggle != "v1.5"
    spans = [] if tokenizer.bos_token_id is None else [Span("system", (tokenizer.bos_token_id,))]
    system = system_text(own, mode, toggle=toggle, tools=tools)
    if system is not None:
        spans.append(_turn(tokenizer, "system", system))
    turns = _with_results([message for message in messages if message.role != "system"], toggle)
    for number, message in enumerate(turns, 1):
        if message.role != "assistant":
            spans.append(_turn(tokenizer, message.role, message.content.strip()))
        elif number < len(turns):
            text = without_reasoning(message.content) + calls_text(message.tool_calls)
            spans += _answer(tokenizer, text, is_target=is_history_learnt)
        else:
            text = _last_answer(message)
            is_opened = toggle == "v1.5" and mode == "off" and not text.startswith(OPEN_TAG)
            spans += _answer(tokenizer, text, opening=NO_REASONING if is_opened else "")
    return spans


_AFTER = {  # role -> what may come before it
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def check_roles(messages: Sequence[Message]) -> None:
    """Raise where a conversation is empty, has unknown roles, or has them out of order.

    The system's turn may come first; then the user's and the assistant's take turns. An answer that
    calls tools is followed by their results, and they by an answer.
    """
    if not messages:
        raise ValueError("messages is empty; give at least the user's turn")
    before = None
    for number, message in enumerate(messages):
        role = message.role
        if role not in ROLES:
            raise ValueError(f"messages[{number}]: role {role!r}: unknown; use {', '.join(ROLES)}")
        if (before and before.role) not in _AFTER[role]:
            where = f"comes after the {before.role}'s turn" if before else "comes first"
            raise ValueError(
                f"messages[{number}]: the {role}'s turn {where}; give the system's first if there "
                "is one, then the user's and the assistant's in turn (join two of the same), and "
                "tools' results after the answer that calls them"
            )
        if role == "tool" and before and before.role == "assistant" and not _calls(before):
            raise ValueError(
                f"messages[{number}]: a tool's result after an answer that calls none; give the "
                "answer its tool_calls"
            )
        before = message


def _calls(message: Message) -> bool:
    return bool(message.tool_calls) or CALLS[0] in message.content


def _with_results(turns: Sequence[Message], toggle: Toggle) -> list[Message]:
    """Return the turns with results written out: in v1 a user turn each, else one for all."""
    written: list[Message] = []
    for is_result, run in groupby(turns, lambda message: message.role == "tool"):
        if not is_result:
            written += run
            continue
        results = [message.content.strip() for message in run]
        role = "user" if toggle == "v1" else "tool"
        texts = results if toggle == "v1" else [", ".join(results)]
        written += [Message(role, f"{RESULTS[0]}{text}{RESULTS[1]}") for text in texts]
    return written


def _last_answer(message: Message) -> str:
    reasoning, calls = (message.reasoning or "").strip(), calls_text(message.tool_calls)
    if not reasoning:
        return message.content.strip() + calls
    return with_reasoning(reasoning, without_reasoning(message.content) + calls)


def _turn(tokenizer: Tokenizer, role: str, text: str) -> Span:
    ids = tokenizer.encode(f"\n\n{text}")
    return Span(role, (*_header(tokenizer, role), *ids, _control_id(tokenizer, TURN_END)))


def _answer(
    tokenizer: Tokenizer, text: str, *, opening: str = "", is_target: bool = True
) -> list[Span]:
    """Return an answer's header and the answer: its ids as they go on from the header's.

    They are those of one text where the tokenizer splits before the answer, as Llama 3's does.
    """
    before = tokenizer.encode(f"\n\n{opening}")
    ids = tokenizer.encode(f"\n\n{opening}{text}")
    ids = ids[len(before) :] if ids[: len(before)] == before else tokenizer.encode(text)
    return [
        Span("assistant", (*_header(tokenizer, "assistant"), *before)),
        Span("assistant", (*ids, _control_id(tokenizer, TURN_END)), is_target),
    ]


def _header(tokenizer: Tokenizer, role: str) -> tuple[int, ...]:
    start, end = _control_id(tokenizer, HEADER), _control_id(tokenizer, HEADER_END)
    return (start, *tokenizer.encode(role), end)


def _control_id(tokenizer: Tokenizer, token: str) -> int:
    id = tokenizer.token_id(token)
    if id is None:
        raise ValueError(
            f"chat: the tokenizer has no {token}, so this is no chat model; tune it with "
            "`fretsaw sft` first, or continue plain text with `fretsaw generate` (chat formats "
            "other than Llama 3's are not rendered)"
        )
    return id
