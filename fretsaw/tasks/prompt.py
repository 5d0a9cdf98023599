"""A problem put to a model in a mode, and what becomes of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from fretsaw.chat.reasoning import MODES, OPEN_TAG, Mode, format_fault, split_reasoning
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.grade.grader import GRADERS, Asks, Grade, grade_batch
from fretsaw.tasks.problem import Problem

PLAIN_MODES = MODES  # of a model that only continues text: an opening tag asks for reasoning


@dataclass(frozen=True)
class Prompt:
    """A problem put to a model in a mode."""

    problem: Problem
    mode: Mode
    token_ids: tuple[int, ...]
    opening: str = ""  # what the prompt has already written of the answer
    ends: tuple[int, ...] = ()  # ids that end the answer, beside those of the model's config


@dataclass(frozen=True)
class GradedAnswer:
    """What became of one answer. `reward` is what RL maximises: the product of the three."""

    correct: float  # 0 to 1
    fault: str | None  # of the format; None if it has none
    is_finished: bool
    found: str  # what was compared with the expected answer
    expected: str
    is_graded: bool  # else a judge came to no verdict

    @property
    def reward(self) -> float:
        """Correctness x format x finished (Llama-Nemotron, arXiv 2505.00949, section 5.1)."""
        return self.correct * (self.fault is None) * self.is_finished


def prompts_by_mode(
    problems: Sequence[Problem], tokenizer: Tokenizer, format: ChatFormat | None
) -> dict[Mode, list[Prompt]]:
    """Return the problems as they are put in each mode: as a chat where the model has a format."""
    modes = format.modes if format else PLAIN_MODES
    return {mode: [prompt_of(p, mode, tokenizer, format) for p in problems] for mode in modes}


def prompt_of(
    problem: Problem, mode: Mode, tokenizer: Tokenizer, format: ChatFormat | None
) -> Prompt:
    """Put a problem to a model: as a chat where it has a format, else as text to continue."""
    if format is None:
        return plain_prompt(tokenizer, problem, mode)
    return chat_prompt(format, problem, mode)


def manner(format: ChatFormat | None) -> str:
    """Return how problems are put to a model, for the screen."""
    if format is None:
        return "problems are put as plain text, for it has no chat format"
    modes = f"reasoning {' and '.join(format.modes)}"
    switch = "" if format.toggle != "none" else ", for it has no toggle"
    return f"problems are put in {format.name}, {modes}{switch}"


def chat_prompt(format: ChatFormat, problem: Problem, mode: Mode) -> Prompt:
    """Put a problem to a chat model; its toggle asks for the mode.

    Raises ValueError where the problem's system text asks for one itself.
    """
    first = problem.messages[0]
    asked = format.mode_in(first.content) if first.role == "system" else None
    if asked is not None:
        raise ValueError(
            f"{problem.where or f'problem {problem.id}'}: its system text asks for reasoning "
            f"{asked!r}, but a problem is put in both modes; leave the toggle out"
        )
    token_ids = format.prompt_ids(problem.messages, mode)
    return Prompt(problem, mode, token_ids, format.opening(mode), format.ends)


def plain_prompt(tokenizer: Tokenizer, problem: Problem, mode: Mode) -> Prompt:
    """Put a problem to a model that only continues text; an opening tag asks for reasoning."""
    text = problem.text or "\n\n".join(m.content for m in problem.messages) + "\n"
    opening = f"{OPEN_TAG}\n" if mode == "on" else ""
    token_ids = tokenizer.text_ids(text + opening)
    return Prompt(problem, mode, token_ids, opening, tokenizer.eos_token_ids)


def grade_answers(
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    is_finished: Sequence[bool],
    judge: Asks | None = None,
) -> list[GradedAnswer]:
    """Grade what a model wrote after each prompt; each grader gets its answers in one batch.

    What is graded is the answer that follows the reasoning; reasoning never closed leaves none. A
    judge is not asked about answers that were cut: they are wrong.
    """
    texts = [p.opening + completion for p, completion in zip(prompts, completions, strict=True)]
    answers = [split_reasoning(text)[1] for text in texts]
    grades: dict[int, Grade] = {}
    for grader in dict.fromkeys(prompt.problem.grader for prompt in prompts):
        own = [i for i, prompt in enumerate(prompts) if prompt.problem.grader == grader]
        if GRADERS[grader].is_judged:
            grades |= {i: Grade(0.0, "cut") for i in own if not is_finished[i]}
            own = [i for i in own if is_finished[i]]
        pairs = [(answers[i], prompts[i].problem.expected) for i in own]
        grades |= dict(zip(own, grade_batch(grader, pairs, judge), strict=True))
    return [
        GradedAnswer(
            grades[i].score,
            format_fault(texts[i], prompt.mode),
            is_finished[i],
            grades[i].evidence,
            prompt.problem.answer,
            grades[i].is_graded,
        )
        for i, prompt in enumerate(prompts)
    ]
