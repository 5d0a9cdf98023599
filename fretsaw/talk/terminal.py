"""A conversation on the terminal: streaming, the reasoning dimmed, the toggle at hand."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import CLOSE_TAG, OPEN_TAG, Mode, Piece, ReasoningSplitter
from fretsaw.engine.sampling import Sampling
from fretsaw.talk.loaded import LoadedModel

HELP = """\
/think     reason before answering    /reset   begin a new conversation
/no_think  answer at once             /exit    leave (Ctrl-C stops an answer)"""
NO_TOGGLE = "this model has no toggle: whether it reasons is its own choice"
DIM, PLAIN = "\033[2m", "\033[0m"


def converse(
    model: LoadedModel,
    *,
    mode: Mode,
    system: str,
    sampling: Sampling,
) -> None:
    """Read turns from stdin and answer them until it ends; without a terminal, a turn a line."""
    if mode == "off" and model.toggle == "none":
        raise ValueError(f"thinking off: {NO_TOGGLE}; leave it out")
    is_terminal = sys.stdin.isatty()
    beginning = [Message("system", system)] if system else []
    messages = list(beginning)
    if is_terminal:
        with contextlib.suppress(ImportError):  # line editing, where the platform has it
            import readline  # noqa: F401
        state = NO_TOGGLE if model.toggle == "none" else f"reasoning {mode}"
        print(f"{state}\n{HELP}\n")
    for turn in _turns(is_terminal):
        match turn:
            case "/exit":
                return
            case "/think" | "/no_think" if model.toggle == "none":
                print(f"{NO_TOGGLE}\n")
            case "/think" | "/no_think":
                mode = "on" if turn == "/think" else "off"
                print(f"reasoning {mode}\n")
            case "/reset":
                messages = list(beginning)
                print("a new conversation\n")
            case _ if turn.startswith("/"):
                print(f"no command {turn}\n{HELP}\n")
            case _:
                messages.append(Message("user", turn))
                answer, shown, splitter = "", None, ReasoningSplitter()
                try:
                    pieces = model.chat(messages, mode, sampling=sampling)
                    with contextlib.closing(pieces), _stoppable(is_terminal) as stopped:
                        for piece in pieces:
                            answer += piece
                            shown = _show(splitter.feed(piece), shown)
                            if stopped:
                                break
                    _show(splitter.flush(), shown)
                    print(" (stopped)" if stopped else "", end="")
                except ValueError as error:
                    if not is_terminal:
                        raise
                    print(error)
                    messages.pop()
                    continue
                print(f"{_code(PLAIN)}\n", flush=True)
                messages.append(Message("assistant", answer))


@contextlib.contextmanager
def _stoppable(is_terminal: bool) -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising: an answer stops between two tokens, not within a step."""
    stopped: list[int] = []
    if not is_terminal:
        yield stopped
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _turns(is_terminal: bool) -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    lines: Iterable[str] = iter(_ask, None) if is_terminal else _piped()
    yield from filter(None, (line.strip() for line in lines))


def _piped() -> Iterator[str]:
    for number, line in enumerate(sys.stdin, start=1):
        if not line.isascii() and any("\ud800" <= character <= "\udfff" for character in line):
            raise ValueError(f"stdin, line {number}: not UTF-8; convert it to UTF-8")
        yield line


def _ask() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return "/exit"


def _show(pieces: Iterable[Piece], shown: str | None) -> str | None:
    """Print pieces of an answer, its reasoning dimmed between its tags; return what came last.

    `shown` is the kind that came last before, None at the beginning.
    """
    for kind, text in pieces:
        if kind == "reasoning" and shown is None:
            text = f"{OPEN_TAG}\n{text}"
        if kind == "content" and shown == "reasoning":
            print(f"\n{CLOSE_TAG}\n\n", end="")
        print(f"{_code(DIM if kind == 'reasoning' else PLAIN)}{text}", end="", flush=True)
        shown = kind
    return shown


def _code(code: str) -> str:
    return code if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ""
