"""Put prompts to a model and grade what it writes: the rows that evaluation and RL work on."""

from collections.abc import Callable, Sequence

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.rollout.rows import Row
from fretsaw.rollout.sample import Sample, sample_groups
from fretsaw.rollout.sampler import Sampler
from fretsaw.tasks.prompt import GradedAnswer, Prompt, grade_answers


def answer(
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    group_size: int = 1,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    on_token: Callable[[int, int], None] = lambda num_ended, num_tokens: None,
) -> list[Row]:
    """Return `group_size` graded answers to every prompt, group by group.

    One that failed has an `error` and no reward; raises `RequestFailed` where all did.
    """
    samples = sample_groups(
        sampler,
        [prompt.token_ids for prompt in prompts],
        group_size=group_size,
        max_tokens=max_tokens,
        temperature=temperature,
        stop_token_ids=_ends(sampler, prompts),
        seed=seed,
        on_token=on_token,
    )
    asked = [prompts[sample.group] for sample in samples]
    written = [s.token_ids[:-1] if s.is_finished else s.token_ids for s in samples]
    completions = [tokenizer.decode(token_ids) for token_ids in written]
    graded = grade_answers(asked, completions, [sample.is_finished for sample in samples])
    shown = [tokenizer.decode(prompt.token_ids, skip_special=False) for prompt in prompts]
    return [
        _row(sample, prompt, shown[sample.group], completion, grade)
        for sample, prompt, completion, grade in zip(
            samples, asked, completions, graded, strict=True
        )
    ]


def _ends(sampler: Sampler, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Return the ids that end an answer: the model's, and those of the prompts' format."""
    return tuple(dict.fromkeys((*sampler.stop_ids, *(id for p in prompts for id in p.ends))))


def _row(sample: Sample, prompt: Prompt, shown: str, completion: str, graded: GradedAnswer) -> Row:
    return Row(
        problem=prompt.problem.id,
        kind=prompt.problem.kind,
        mode=prompt.mode,
        group=sample.group,
        index=sample.index,
        question=prompt.problem.messages[-1].content,
        prompt=shown,
        completion=completion,
        prompt_ids=list(sample.prompt_ids),
        token_ids=list(sample.token_ids),
        logprobs=list(sample.logprobs),
        is_finished=sample.is_finished,
        temperature=sample.temperature,
        seed=sample.seed,
        weight_version=sample.weight_version,
        correct=graded.correct,
        fault=graded.fault,
        found=graded.found,
        expected=graded.expected,
        reward=graded.reward,
        error=sample.error,
    )
