"""A problem and how an answer to it is graded: one object for evaluation, RL and pass rates.

A family of problems is a file of this room that makes `Problem`s; users bring their own as JSONL.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import OPEN_TAG, Mode, format_fault, split_reasoning
from fretsaw.chat.render import prompt_ids
from fretsaw.chat.toggle import TOGGLES, Toggle, mode_in
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.data.records import read_messages
from fretsaw.data.sources import read_objects
from fretsaw.grade.number import grade_number
from fretsaw.grade.text import grade_contains, grade_exact

Grader = Callable[[str, str], tuple[float, str]]
GRADERS: dict[str, Grader] = {
    "number": grade_number,
    "exact": grade_exact,
    "contains": grade_contains,
}


@dataclass(frozen=True)
class Problem:
    """A question with the answer that is expected of it."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    grader: str = "number"
    kind: str = ""  # what results are broken down by
    text: str | None = None  # the same for a model that only continues text


@dataclass(frozen=True)
class Verdict:
    """What became of one answer. `reward` is what RL maximises: the product of the three."""

    correct: float  # 0 to 1
    fault: str | None  # of the format; None if it has none
    is_finished: bool
    found: str  # what was compared with the expected answer
    expected: str

    @property
    def reward(self) -> float:
        """Correctness x format x finished (Llama-Nemotron, arXiv 2505.00949, section 5.1)."""
        return self.correct * (self.fault is None) * self.is_finished


def grade(problem: Problem, text: str, mode: Mode, *, is_finished: bool = True) -> Verdict:
    """Grade the answer that follows the reasoning; reasoning never closed leaves none."""
    _, answer = split_reasoning(text)
    correct, found = GRADERS[problem.grader](answer, problem.answer)
    return Verdict(correct, format_fault(text, mode), is_finished, found, problem.answer)


@dataclass(frozen=True)
class Prompt:
    """A problem put to a model in a mode."""

    problem: Problem
    mode: Mode
    token_ids: tuple[int, ...]
    opening: str = ""  # what the prompt has already written of the answer

    def grade(self, completion: str, *, is_finished: bool) -> Verdict:
        """Grade what the model wrote after the prompt."""
        text = self.opening + completion
        return grade(self.problem, text, self.mode, is_finished=is_finished)


def chat_prompt(
    tokenizer: Tokenizer, problem: Problem, mode: Mode, toggle: Toggle = "v1"
) -> Prompt:
    """Put a problem to a chat model; its toggle asks for the mode."""
    return Prompt(problem, mode, prompt_ids(tokenizer, problem.messages, mode, toggle=toggle))


def plain_prompt(tokenizer: Tokenizer, problem: Problem, mode: Mode) -> Prompt:
    """Put a problem to a model that only continues text; an opening tag asks for reasoning."""
    text = problem.text or "\n\n".join(m.content for m in problem.messages) + "\n"
    opening = f"{OPEN_TAG}\n" if mode == "on" else ""
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    return Prompt(problem, mode, (*bos, *tokenizer.encode(text + opening)), opening)


def read_problems(path: Path) -> list[Problem]:
    """Read the user's own: `{"prompt" or "messages", "answer", "grader"}` a line.

    `grader` is one of `GRADERS` (number where it is left out), `kind` and `id` are optional. Raises
    ValueError with file and line for a row that could not be graded.
    """
    problems = []
    for number, (where, row) in enumerate(read_objects(path)):
        answer, grader = row.get("answer"), row.get("grader", "number")
        if isinstance(answer, int | float):
            answer = str(answer)
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{where}: answer is {answer!r}; write the expected answer as text")
        if grader not in GRADERS:
            raise ValueError(f"{where}: grader is {grader!r}; choose one of {', '.join(GRADERS)}")
        prompt = row.get("prompt")
        if isinstance(prompt, str) and prompt.strip():
            messages: tuple[Message, ...] = (Message("user", prompt),)
        elif "messages" in row:
            messages = read_messages(row["messages"], where)
        else:
            raise ValueError(f"{where}: prompt is {prompt!r}; write a prompt, or messages")
        if messages[-1].role != "user":
            raise ValueError(f"{where}: the last message is not the user's; end with the question")
        system = messages[0].content if messages[0].role == "system" else ""
        asked = next(filter(None, (mode_in(system, toggle) for toggle in TOGGLES)), None)
        if asked is not None:
            raise ValueError(
                f"{where}: its system text asks for reasoning {asked!r}, but a problem is put in "
                "both modes; leave the toggle out"
            )
        try:
            GRADERS[grader]("", answer)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        kind, id = str(row.get("kind", "")), str(row.get("id", number))
        problems.append(Problem(id, messages, answer, grader, kind, row.get("prompt")))
    return problems
