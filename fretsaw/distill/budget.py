"""Which settings let a distillation fit a device: from the plainest to the most frugal.

Standard library only. Every rung keeps what the rungs before it saved; the order is by what each
costs in speed or in faithfulness, the cheapest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fretsaw.model.config import ModelConfig
from fretsaw.training.settings import LoraSettings, UpdateSettings
from fretsaw.training.step_memory import TrainingBytes, TrainingShape, training_bytes

USABLE = 0.95  # of a device's memory: the rest is its runtime's, and lost between tensors


@dataclass(frozen=True)
class Rung:
    """Settings of a distillation, as options of `fretsaw distill`, and what it then holds."""

    options: str
    shape: TrainingShape
    bytes: TrainingBytes


def ladder(
    student: ModelConfig,
    teacher: ModelConfig,
    *,
    dtype: str,
    micro_batch_tokens: int,
    seq_len: int,
) -> list[Rung]:
    """Return the rungs, the plainest first."""
    shape = TrainingShape(
        student=student,
        teacher=teacher,
        update=UpdateSettings(),
        dtype="fp32" if dtype == "fp32" else "bf16",
        micro_batch_tokens=micro_batch_tokens,
        seq_len=seq_len,
    )
    int8 = replace(shape.update, states="int8")
    bf16 = replace(int8, master="bf16")
    steps: Sequence[tuple[str, dict[str, Any]]] = (
        ("", {}),
        ("--activation-checkpointing True", {"activation_checkpointing": True}),
        ("--teacher-dtype bf16", {"teacher_dtype": "bf16"}),
        ("--states int8", {"update": int8}),
        ("--master bf16", {"update": bf16}),
        ("--teacher CACHE --cosine-weight 0", {"teacher": None, "cosine": False}),
        ("--offload True", {"update": replace(bf16, offload=True)}),
        ("--lora-rank 16", {"lora": LoraSettings(lora_rank=16)}),
    )
    rungs, options = [], []
    for option, change in steps:
        shape = replace(shape, **change)
        options += [option] if option else []
        rungs.append(Rung(" ".join(options), shape, training_bytes(shape)))
    return rungs


def first_that_fits(rungs: Sequence[Rung], memory_bytes: float) -> Rung | None:
    """Return the plainest rung that a device holds, or None where not even the last does."""
    return next((rung for rung in rungs if rung.bytes.peak <= USABLE * memory_bytes), None)
