"""Put prompts to a model and grade what it writes: the rows that evaluation and RL work on."""

from collections.abc import Callable, Sequence

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.sampling import Sampling
from fretsaw.grade.grader import Asks
from fretsaw.rollout.rows import Row
from fretsaw.rollout.sample import Sample, sample_groups
from fretsaw.rollout.sampler import Sampler
from fretsaw.tasks.prompt import Prompt, grade_answers


def answer(
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    group_size: int = 1,
    first_group: int = 0,
    judge: Asks | None = None,
    on_token: Callable[[int, int], None] = lambda num_ended, num_tokens: None,
) -> list[Row]:
    """Return `group_size` graded answers to every prompt, group by group.

    `sampling` gives the run's seed, from which each answer has its own; groups are counted from
    `first_group`. One that failed has an `error` and no reward; raises `RequestFailed` where all
    did.
    """
    samples = sample_groups(
        sampler,
        [prompt.token_ids for prompt in prompts],
        sampling,
        group_size=group_size,
        first_group=first_group,
        stop_token_ids=_ends(sampler, prompts),
        on_token=on_token,
    )
    written = [s.token_ids[:-1] if s.is_finished else s.token_ids for s in samples]
    completions = [tokenizer.decode(token_ids) for token_ids in written]
    asked = [prompts[sample.group - first_group] for sample in samples]
    shown = {p: tokenizer.decode(p, skip_special=False) for p in {p.token_ids for p in prompts}}
    return graded_rows(samples, asked, [shown[p.token_ids] for p in asked], completions, judge)


def _ends(sampler: Sampler, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Return the ids that end an answer: the model's, and those of the prompts' format."""
    return tuple(dict.fromkeys((*sampler.stop_ids, *(id for p in prompts for id in p.ends))))


def graded_rows(
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    shown: Sequence[str],
    completions: Sequence[str],
    judge: Asks | None = None,
) -> list[Row]:
    """Return samples as graded rows; each comes with its prompt, that as text, and its own text."""
    is_finished = [sample.is_finished for sample in samples]
    graded = grade_answers(prompts, completions, is_finished, judge)
    return [
        Row(
            problem=prompt.problem.id,
            kind=prompt.problem.kind,
            mode=prompt.mode,
            group=sample.group,
            index=sample.index,
            question=prompt.problem.messages[-1].content,
            prompt=text,
            completion=completion,
            prompt_ids=list(sample.prompt_ids),
            token_ids=list(sample.token_ids),
            logprobs=list(sample.logprobs),
            num_tokens=sample.num_tokens,
            is_finished=sample.is_finished,
            temperature=sample.temperature,
            top_p=sample.top_p,
            seed=sample.seed,
            weight_version=sample.weight_version,
            correct=grade.correct,
            is_graded=grade.is_graded,
            fault=grade.fault,
            found=grade.found,
            expected=grade.expected,
            reward=grade.reward,
            error=sample.error,
        )
        for sample, prompt, text, completion, grade in zip(
            samples, prompts, shown, completions, graded, strict=True
        )
    ]
