"""The conversation on the terminal, with turns piped in: what is printed, and what is refused."""

import io
import os
import signal
from collections.abc import Generator

import pytest

from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.reasoning import with_reasoning
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.sampling import Sampling
from fretsaw.talk.loaded import LoadedModel
from fretsaw.talk.terminal import _stoppable, converse


class Echo(LoadedModel):
    """Stands where a loaded model does: says what it was asked, in pieces."""

    def __init__(self, toggle: Toggle) -> None:
        self.asked: list[tuple[list[Message], str]] = []
        tokenizer = Tokenizer.train(["a"], 300)
        self.format = NemotronFormat(tokenizer, toggle)

    def chat(self, messages, mode="on", **options) -> Generator[str, None, None]:
        self.asked.append((list(messages), mode))
        text = messages[-1].content
        yield from with_reasoning("hm", text) if mode == "on" else text


def talk(
    monkeypatch: pytest.MonkeyPatch, lines: str, system: str = "", toggle: Toggle = "v1"
) -> Echo:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    model = Echo(toggle)
    converse(model, mode="on", system=system, sampling=Sampling(max_tokens=9))
    return model


def test_turns_build_a_history_and_the_toggle_changes_on_the_way(monkeypatch, capsys) -> None:
    model = talk(monkeypatch, "one\n\n/no_think\ntwo\n", system="Be brief.")
    assert [mode for _, mode in model.asked] == ["on", "off"]
    history, _ = model.asked[1]
    assert history == [
        Message("system", "Be brief."),
        Message("user", "one"),
        Message("assistant", with_reasoning("hm", "one")),
        Message("user", "two"),
    ]
    printed = capsys.readouterr().out
    assert "<think>\nhm\n</think>\n\none\n" in printed
    assert "\033" not in printed  # no colours where there is no terminal


def test_reset_and_exit(monkeypatch, capsys) -> None:
    model = talk(monkeypatch, "one\n/reset\ntwo\n/exit\nthree\n")
    assert [messages for messages, _ in model.asked] == [
        [Message("user", "one")],
        [Message("user", "two")],
    ]
    assert "a new conversation" in capsys.readouterr().out


def test_an_unknown_command_is_said(monkeypatch, capsys) -> None:
    assert talk(monkeypatch, "/thinking\n").asked == []
    assert "no command /thinking" in capsys.readouterr().out


def test_a_model_without_a_toggle_refuses_it(monkeypatch, capsys) -> None:
    model = talk(monkeypatch, "/no_think\none\n", toggle="none")
    assert [mode for _, mode in model.asked] == ["on"]
    assert "this model has no toggle" in capsys.readouterr().out


def test_only_the_reasoning_is_dimmed(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    talk(monkeypatch, "one\n")
    dim, plain = "\033[2m", "\033[0m"
    printed = capsys.readouterr().out
    assert printed.startswith(f"{dim}<think>\nh{dim}m\n</think>\n\n{plain}o{plain}n")


def test_thinking_off_without_a_toggle_is_refused() -> None:
    with pytest.raises(ValueError, match="thinking off: this model has no toggle"):
        converse(Echo("none"), mode="off", system="", sampling=Sampling(max_tokens=9))


def test_ctrl_c_stops_an_answer_between_two_tokens() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _stoppable(is_terminal=True) as stopped:
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_line_that_is_not_utf_8_is_told_by_its_number(monkeypatch) -> None:
    piped = io.TextIOWrapper(io.BytesIO("é\n".encode() + b"a \xff\n"), encoding="latin-1")
    monkeypatch.setattr("sys.stdin", piped)
    model = Echo("v1")
    with pytest.raises(ValueError, match="stdin, line 2: not UTF-8; convert it"):
        converse(model, mode="on", system="", sampling=Sampling(max_tokens=9))
    assert model.asked[0][0][0] == Message("user", "é")
