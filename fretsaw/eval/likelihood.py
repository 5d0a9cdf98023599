"""Multiple choice by likelihood: the choice that a model would write most likely is its answer.

The way base models are compared: nothing is written, and no format is asked for. Each choice stands
after the question as text, and what counts is log p(choice | question), or that by byte of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.data.pack import batch_of, pack
from fretsaw.eval.local import LocalModel
from fretsaw.eval.served import ServedModel
from fretsaw.model.decoder import Decoder
from fretsaw.rollout.rows import Row
from fretsaw.stage.execute import StageRun
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.task import AskedTask
from fretsaw.training.losses import packed_logprobs

Encoded = tuple[tuple[int, ...], tuple[bool, ...]]  # token ids, and which are the choice's

BATCH_TOKENS = 4096  # of one forward, or of the longest question with a choice
PROBLEMS_AT_ONCE = 32


def choice_answers(
    model: LocalModel | ServedModel, task: AskedTask, name: str, run: StageRun
) -> list[Row]:
    """Return the likeliest choice to every problem; raise ValueError where one has no choices."""
    if isinstance(model, ServedModel):
        raise ValueError(
            f"task {task.name!r}: likelihoods are not read from a server; evaluate the checkpoint"
        )
    rows: list[Row] = []
    run.progress.start(f"{name} likelihoods", len(task.problems), unit="problem")
    for first in range(0, len(task.problems), PROBLEMS_AT_ONCE):
        some = task.problems[first : first + PROBLEMS_AT_ONCE]
        choices = [_choices(task, problem) for problem in some]
        texts = [
            (_question(problem), f" {choice}")
            for problem, own in zip(some, choices, strict=True)
            for choice in own.values()
        ]
        sums = choice_logprobs(model.decoder, [encoded(model.tokenizer, *pair) for pair in texts])
        if task.by == "byte_likelihood":
            sums = sums / np.array([len(choice.strip().encode()) for _, choice in texts])
        at = 0
        for place, (problem, own) in enumerate(zip(some, choices, strict=True), start=first):
            rows.append(_row(problem, own, sums[at : at + len(own)], place))
            at += len(own)
        run.step(len(rows), row=False)
    return rows


def encoded(tokenizer: Tokenizer, before: str, choice: str) -> Encoded:
    """Return a question with its choice as token ids, and which of them are the choice's.

    They are encoded together, as they would be read; the choice's are those beyond the question's.
    """
    asked = tokenizer.text_ids(before)
    whole = tokenizer.text_ids(before + choice)
    shared = next((i for i, (a, b) in enumerate(zip(asked, whole)) if a != b), len(asked))  # noqa: B905
    shared = min(shared, len(whole) - 1)
    return tuple(whole), tuple(i >= shared for i in range(len(whole)))


@torch.inference_mode()
def choice_logprobs(
    decoder: Decoder, texts: Sequence[Encoded], dtype: str = "fp32"
) -> Float[np.ndarray, " texts"]:
    """Return the log-probability of each text's marked tokens, given all before them, in nats."""
    ids, masks = zip(*texts, strict=True)
    longest = max(map(len, ids))
    context = decoder.config.max_position_embeddings
    if longest > context:
        raise ValueError(
            f"eval: a question with a choice has {longest} tokens, but the model's context is "
            f"{context}; leave such problems out"
        )
    row_len = max(longest, min(BATCH_TOKENS, context))
    sums = np.zeros(len(texts))
    for row in pack([len(one) for one in ids], row_len):
        batch = batch_of(ids, masks, [row], row_len)
        logprobs = packed_logprobs(decoder, *batch.arrays, dtype=dtype).double().cpu().numpy()
        owners = np.repeat(batch.indices, [sum(masks[i][1:]) for i in batch.indices])
        np.add.at(sums, owners, logprobs)
    return sums


def _choices(task: AskedTask, problem: Problem) -> dict[str, str]:
    choices = problem.expected.get("choices")
    if not isinstance(choices, dict) or problem.answer not in choices:
        raise ValueError(
            f"task {task.name!r}: {problem.where or problem.id} has no choices by name with its "
            "answer among them, so no likelihood can be taken; leave `by` out"
        )
    return choices


def _question(problem: Problem) -> str:
    return problem.text or problem.messages[-1].content


def _row(problem: Problem, choices: dict[str, str], sums: np.ndarray, place: int) -> Row:
    name = list(choices)[int(sums.argmax())]
    is_right = float(name == problem.answer)
    return Row(
        problem=problem.id,
        kind=problem.kind,
        mode="off",
        group=place,
        index=0,
        question=problem.messages[-1].content,
        prompt=_question(problem),
        completion=choices[name],
        prompt_ids=[],
        token_ids=[],
        logprobs=sums.tolist(),
        num_tokens=0,
        is_finished=True,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        weight_version=0,
        correct=is_right,
        is_graded=True,
        fault=None,
        found=name,
        expected=problem.answer,
        reward=is_right,
    )
