"""What reinforcement takes: sampling, then updates."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.model.size import kv_bytes
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import PROMPT, decoding_s, saved_bytes, token_flops, weight_bytes
from fretsaw.plan.stage_plan import NEVER, StagePlan
from fretsaw.plan.stages.training import frugal
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.rl.settings import RlSettings
from fretsaw.training.step_memory import TrainingShape, kept_bytes, training_bytes


def rl(s: RlSettings, at: Shapes, on: Hardware) -> Work:
    """Sampling (answers half as long as they may be), then updates; measured now and then."""
    model, answers = at["model"], s.prompts_per_rollout * s.group_size
    length, row = max(1, s.max_tokens // 2), PROMPT + s.max_tokens
    sampled = s.num_rollouts * answers
    measured = 2 * s.heldout_problems * (s.num_rollouts // s.heldout_every + 2)
    sampling = decoding_s(model, on.alone, sampled + measured, PROMPT, length, s.max_batch)
    passes = 4 + (s.kl_coef > 0)  # forward and backward, the old probabilities, the reference's
    read = sampled * (PROMPT + length)
    flops = read * passes * token_flops(model, PROMPT + length)
    micro = max(s.micro_batch_tokens, row)
    shape = TrainingShape(
        student=model,
        teacher=model if s.kl_coef > 0 else None,
        update=s.update,
        dtype="bf16" if on.dtype == "bf16" else "fp32",
        micro_batch_tokens=micro,
        seq_len=row,
        cosine=False,
    )
    held = training_bytes(shape)
    weights, optimizer = held.weights + held.teacher, held.gradients + held.moments
    cache = min(s.max_batch, answers) * row * kv_bytes(model, "fp32")
    rest = held.peak - weights - optimizer - held.logits
    update = MemoryUse("update", weights, rest, optimizer, held.logits)
    return Work(
        uses=(
            MemoryUse("sampling", weights + weight_bytes(model), 0.0, held.moments, cache=cache),
            update,
        ),
        tokens=(sampled + measured) * (PROMPT + length),
        seconds=sampling + on.alone.seconds(flops),
        disk=saved_bytes(model, on) + kept_bytes(model, s.update, shape.lora),
        remedy=f"lower max_batch, {frugal(s.update, update)}",
    )


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> RlSettings:
    """Return the settings of so many rollouts, measured on two problems before and after."""
    return replace(
        stage.settings,
        num_rollouts=steps,
        heldout_problems=2,
        heldout_every=NEVER,
        needs_signal=False,
    )


RL = StagePlan(work=rl, fewer=fewer)
