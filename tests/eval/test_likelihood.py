"""Choices by likelihood are those of a plain forward over question and choice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import stage_run

from fretsaw.chat.message import Message
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.eval.likelihood import choice_answers, choice_logprobs, encoded
from fretsaw.eval.local import LocalModel
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.task import OWN_FILE, AskedTask

QUESTION = "Tom has 3 apples. How many has he?"
CHOICES = {"A": "3", "B": "a fox in the wood", "C": "5 apples"}


def asked(expected: dict, by: str = "likelihood") -> AskedTask:
    problem = Problem("p", (Message("user", QUESTION),), expected, "exact")
    return AskedTask("set", [problem], OWN_FILE, by=by)


def test_a_choice_is_as_likely_as_its_tokens_after_the_question(tiny: Path) -> None:
    decoder = checkpoint.load(tiny / "parent")
    tokenizer = Tokenizer.from_folder(tiny / "parent")
    before = f"{QUESTION}\n"
    texts = [encoded(tokenizer, before, choice) for choice in CHOICES.values()]
    sums = choice_logprobs(decoder, texts)
    for (ids, mask), choice, found in zip(texts, CHOICES.values(), sums, strict=True):
        assert tokenizer.decode([i for i, own in zip(ids, mask, strict=True) if own]) == choice
        with torch.no_grad():
            hidden = decoder.hidden_states(torch.tensor([ids]))
            logprobs = (hidden[0] @ decoder.head_weight.T).log_softmax(-1)
        wanted = sum(logprobs[i - 1, ids[i]] for i in range(1, len(ids)) if mask[i])
        assert found == pytest.approx(float(wanted), abs=1e-4)


def test_by_byte_the_length_of_a_choice_does_not_count(tiny: Path, tmp_path: Path) -> None:
    model = LocalModel(checkpoint.load(tiny / "parent"), tiny / "parent")
    expected = {"answer": "A", "choices": CHOICES}
    (whole,) = choice_answers(model, asked(expected), "child", stage_run(tmp_path / "a"))
    by_byte = asked(expected, "byte_likelihood")
    (each,) = choice_answers(model, by_byte, "child", stage_run(tmp_path / "b"))
    lengths = [len(choice) for choice in CHOICES.values()]
    assert np.allclose(np.array(whole.logprobs) / lengths, each.logprobs)
    assert whole.found == list(CHOICES)[int(np.argmax(whole.logprobs))]
    assert whole.correct == (whole.found == "A")


def test_a_problem_without_choices_is_told(tiny: Path, tmp_path: Path) -> None:
    model = LocalModel(checkpoint.load(tiny / "parent"), tiny / "parent")
    for expected in ({"answer": "3"}, {"answer": "D", "choices": CHOICES}):
        with pytest.raises(ValueError, match="no choices by name with its answer among them"):
            choice_answers(model, asked(expected), "child", stage_run(tmp_path))
