"""Put prompts to a model and grade what it writes: the rows that evaluation and RL work on."""

from collections.abc import Callable, Sequence

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.engine import Engine
from fretsaw.rollout.rows import Row
from fretsaw.rollout.sample import sample_groups
from fretsaw.tasks.problem import Prompt


def answer(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    group_size: int = 1,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    on_finished: Callable[[int], None] = lambda num_finished: None,
) -> list[Row]:
    """Return `group_size` graded answers to every prompt, group by group."""
    stop = stop_ids(engine)
    samples = sample_groups(
        engine,
        [prompt.token_ids for prompt in prompts],
        group_size=group_size,
        max_tokens=max_tokens,
        temperature=temperature,
        stop_token_ids=stop,
        seed=seed,
        on_finished=on_finished,
    )
    shown = [tokenizer.decode(prompt.token_ids, skip_special=False) for prompt in prompts]
    rows = []
    for sample in samples:
        prompt = prompts[sample.group]
        written = sample.token_ids[:-1] if sample.is_finished else sample.token_ids
        completion = tokenizer.decode(written)
        verdict = prompt.grade(completion, is_finished=sample.is_finished)
        rows.append(
            Row(
                problem=prompt.problem.id,
                kind=prompt.problem.kind,
                mode=prompt.mode,
                group=sample.group,
                index=sample.index,
                question=prompt.problem.messages[-1].content,
                prompt=shown[sample.group],
                completion=completion,
                prompt_ids=list(sample.prompt_ids),
                token_ids=list(sample.token_ids),
                logprobs=list(sample.logprobs),
                is_finished=sample.is_finished,
                temperature=sample.temperature,
                seed=sample.seed,
                weight_version=sample.weight_version,
                correct=verdict.correct,
                fault=verdict.fault,
                found=verdict.found,
                expected=verdict.expected,
                reward=verdict.reward,
            )
        )
    return rows


def stop_ids(engine: Engine) -> tuple[int, ...]:
    """Return the ids that end an answer: the model's own, and the token that begins a text.

    Documents follow one another in plain text, so the beginning of the next one is an end too.
    """
    config = engine.decoder.config
    bos = () if config.bos_token_id is None else (config.bos_token_id,)
    return tuple(dict.fromkeys((*config.eos_token_ids, *bos)))
