"""What evaluation takes."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.eval.settings import EvalSettings
from fretsaw.model.size import kv_bytes
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import (
    EVAL_BATCH,
    PROMPT,
    decoding_s,
    logit_bytes,
    token_flops,
    weight_bytes,
)
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.tasks.task import OWN_FILE, named_task


def evaluate(s: EvalSettings, at: Shapes, on: Hardware) -> Work:
    """Text read by model and parent; problems answered by both, with thought and without."""
    models = [at[name] for name in ("model", "parent") if name in at]
    text = s.tokens if "corpus" in at else 0
    tasks = len([name for name in s.task.split(" + ") if name.strip()]) + ("problems" in at)
    answers = 2 * tasks * (s.limit or s.num_problems) * s.samples
    flops = sum(text * token_flops(model, s.seq_len) for model in models)
    decoding = sum(
        decoding_s(model, on.alone, answers, PROMPT, most_tokens(s), EVAL_BATCH) for model in models
    )
    row = PROMPT + most_tokens(s)
    cache = min(answers, EVAL_BATCH) * row * kv_bytes(models[0], "fp32")
    logits = 2 * logit_bytes(models[0], s.batch_rows * s.seq_len, len(models)) if text else 0.0
    states = 4 * s.batch_rows * s.seq_len * 4 * models[0].hidden_size
    uses = [MemoryUse("text", weight_bytes(*models), states, logits=logits)] if text else []
    uses += [MemoryUse("answers", 2 * weight_bytes(*models), cache=cache)] if answers else []
    return Work(
        uses=tuple(uses),
        tokens=len(models) * (text + answers * row),
        seconds=on.alone.seconds(flops) + decoding,
        disk=2e5 + 500 * answers,
        remedy="lower batch_rows (text) or max_new_tokens (answers)",
        note=on.note_of({s.weights}),
    )  # fmt: skip


def most_tokens(s: EvalSettings) -> int:
    """Return the tokens of the longest answer that may be asked for."""
    rows = [named_task(name)[0] for name in filter(None, map(str.strip, s.task.split(" + ")))]
    drawn = [sampling for row in rows for sampling in row.sampling.values()]
    longest = [sampling.max_tokens for sampling in (*drawn, *OWN_FILE.values())]
    return s.max_new_tokens or max(longest)


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> EvalSettings:
    """Return the settings of a batch of text and four problems a step."""
    s = stage.settings
    rows = steps * s.batch_rows * s.seq_len
    return replace(s, tokens=min(s.tokens, rows), num_problems=4 * steps)


EVAL = StagePlan(work=evaluate, fewer=fewer)
