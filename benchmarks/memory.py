"""The planner's bytes of a training step against the tensors that are really held, phase by phase.

A small student and teacher run one micro-batch forward and backward and one optimizer step under
every kind of settings; storages are counted as they are made and freed.

    python benchmarks/memory.py [--out FILE.json]
"""

import argparse
import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from live_bytes import LiveBytes, saved_bytes

from fretsaw.distill.objective import Objective, losses
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.training.lora import adapt
from fretsaw.training.optimizer import build_optimizers
from fretsaw.training.settings import LoraSettings, UpdateSettings
from fretsaw.training.step_memory import TrainingShape, training_bytes

PARENT = ModelConfig.uniform(
    num_hidden_layers=6, num_key_value_heads=4, intermediate_size=352, vocab_size=2000,
    hidden_size=128, num_attention_heads=8, head_dim=16,
)  # fmt: skip
CHILD = replace(
    PARENT, blocks=tuple(replace(block, intermediate_size=256) for block in PARENT.blocks)
)
SHAPE = TrainingShape(
    student=CHILD, teacher=PARENT, update=UpdateSettings(), micro_batch_tokens=512, seq_len=128
)
LEAN = UpdateSettings(states="int8", master="bf16")
CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "autocast": {"dtype": "bf16"},
    "checkpointed": {"activation_checkpointing": True},
    "autocast, checkpointed": {"dtype": "bf16", "activation_checkpointing": True},
    "states bf16": {"update": UpdateSettings(states="bf16")},
    "states int8": {"update": UpdateSettings(states="int8")},
    "int8 + bf16, checkpointed": {
        "update": LEAN, "teacher_dtype": "bf16", "activation_checkpointing": True,
    },
    "no cosine": {"cosine": False},
    "lora": {"lora": LoraSettings(lora_rank=8)},
}  # fmt: skip


def measure(shape: TrainingShape) -> dict[str, float]:
    """Run a step and return the bytes held by phase."""
    assert shape.teacher is not None, "the benchmark's cases all have a live teacher"
    student, teacher = Decoder(shape.student), Decoder(shape.teacher)
    student.init_weights(0)
    teacher.init_weights(1)
    for model, dtype in ((student, shape.update.master), (teacher, shape.teacher_dtype)):
        model.context(1, 1)
        if dtype == "bf16":
            model.bfloat16()
    teacher.requires_grad_(False)
    trained = adapt(student, shape.lora, 0) if shape.lora.lora_rank else student
    optimizers = build_optimizers(trained, shape.update)
    if shape.activation_checkpointing:
        for block in student.model.layers:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    rows = shape.micro_batch_tokens // shape.seq_len
    window = torch.randint(shape.student.vocab_size, (rows, shape.seq_len + 1))
    objective = Objective(kl=1.0, cosine=float(shape.cosine), lm=0.0)
    with LiveBytes([*student.parameters(), *teacher.parameters(), window]) as live:
        loss, _ = losses(student, teacher, window, objective, shape.dtype)
        held, in_loss = live.now, live.peak
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    gradients = sum(p.grad.nbytes for p in trained.parameters() if p.grad is not None)
    return {
        "weights": sum(p.nbytes for p in student.parameters()),
        "teacher": sum(p.nbytes for p in teacher.parameters()),
        "gradients": gradients,
        "moments": saved_bytes(optimizers),
        # The student's log-probabilities and p stay with the activations until the backward.
        "activations": held - 2 * 4 * shape.micro_batch_tokens * shape.student.vocab_size,
        "in the loss": in_loss,
    }


def foresee(shape: TrainingShape) -> dict[str, float]:
    """Return the closed form's bytes of the same phases."""
    b = training_bytes(shape)
    kept = 0 if shape.activation_checkpointing else b.casts
    return {
        "weights": b.weights,
        "teacher": b.teacher,
        "gradients": b.gradients,
        "moments": b.moments,
        "activations": b.activations + kept,
        "in the loss": b.in_loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'settings':<28}{'phase':<14}{'foreseen':>12}{'held':>12}{'error':>9}")
    rows = []
    for name, change in CASES.items():
        shape: TrainingShape = replace(SHAPE, **change)
        foreseen, held = foresee(shape), measure(shape)
        for phase, value in held.items():
            error = foreseen[phase] / value - 1
            rows.append({"settings": name, "phase": phase, "foreseen": foreseen[phase],
                         "held": value, "error": error})  # fmt: skip
            print(f"{name:<28}{phase:<14}{foreseen[phase]:>12,.0f}{value:>12,.0f}{error:>9.2%}")
    if arguments.out:
        about = {"torch": torch.__version__}
        arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
