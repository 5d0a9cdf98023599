"""What memory refuses, as one sentence; errors are real ones."""

from collections.abc import Callable

import pytest
import torch

from fretsaw import cli
from fretsaw.stage.memory_errors import REMEDY, sentence_of

TOO_LARGE: list[Callable[[], object]] = [
    lambda: torch.empty(2**50),
    lambda: bytearray(2**60),
]


def error_of(ask: Callable[[], object]) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        ask()
    return raised.value


@pytest.mark.parametrize("ask", TOO_LARGE)
def test_what_asks_for_too_much_is_one_sentence(
    ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = sentence_of(error_of(ask))
    assert sentence is not None
    assert sentence.startswith("out of memory: ")
    assert sentence.endswith(REMEDY)
    assert "\n" not in sentence
    monkeypatch.setattr(cli, "command", lambda name: lambda argv: ask())
    assert cli.main(["eval"]) == 2
    assert capsys.readouterr().err == f"fretsaw: {sentence}\n"


def test_the_size_is_told_where_it_is_known() -> None:
    sentences = [str(sentence_of(error_of(ask))) for ask in TOO_LARGE]
    assert sentences[0].startswith(
        f"out of memory: {4 * 2**50} bytes asked for, which are not free"
    )
    assert sentences[1].startswith("out of memory: more asked for than is free; ask for less")


def test_other_errors_are_none() -> None:
    assert sentence_of(error_of(lambda: torch.ones(2) @ torch.ones(3))) is None
    assert sentence_of(ValueError("can't allocate memory")) is None
    on_cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    assert (
        sentence_of(on_cuda) == f"out of memory: 2.00 GiB asked for, which are not free; {REMEDY}"
    )
