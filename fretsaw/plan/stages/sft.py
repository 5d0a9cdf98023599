"""What tuning on conversations takes."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fretsaw.distill.settings import TrainSettings
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import ROW_TOKENS
from fretsaw.plan.stage_plan import NEVER, StagePlan
from fretsaw.plan.stages.training import frugal, training_work
from fretsaw.plan.work import Hardware, Shapes, Work
from fretsaw.sft.settings import MAX_ROW, SftSettings

BYTES_A_TOKEN = 4  # of text in files


def sft(s: SftSettings, at: Shapes, on: Hardware) -> Work:
    """Packed rows of conversations, as many as the files' bytes tell, or the settings."""
    model = at["model"]
    seq_len = s.seq_len or min(MAX_ROW, model.max_position_embeddings)
    generated = s.num_rows * (ROW_TOKENS if s.source == "world" else seq_len)
    rows = at.text_bytes // BYTES_A_TOKEN if s.source == "files" and at.text_bytes else generated
    tokens = max(s.batch_tokens, seq_len, s.epochs * rows)
    micro = max(1, s.micro_batch_tokens // seq_len) * seq_len  # whole rows
    batch = max(1, s.batch_tokens // micro) * micro
    train = TrainSettings(
        tokens=max(tokens, batch),
        seq_len=seq_len,
        batch_tokens=batch,
        micro_batch_tokens=micro,
        heldout_tokens=max(seq_len, round(s.heldout_share * tokens)),
        update=s.update,
        lora=s.lora,
    )
    work = training_work(train, model, on, keeps_best=s.keep_best)
    return replace(work, remedy=frugal(s.update, work.uses[0]))  # it can't run blocks again


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> SftSettings:
    """Return the settings of so many steps on generated conversations."""
    rows = math.ceil(steps * stage.settings.batch_tokens / ROW_TOKENS)
    return replace(stage.settings, source="world", num_rows=rows, epochs=1, save_every_s=NEVER)


SFT = StagePlan(work=sft, fewer=fewer)
