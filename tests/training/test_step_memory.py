"""The closed form against the tensors that are really held, within 2 %."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes, saved_bytes
from torch.utils.checkpoint import checkpoint

from fretsaw.distill.objective import Objective, losses
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params
from fretsaw.training.lora import adapt
from fretsaw.training.optimizer import build_optimizers
from fretsaw.training.settings import LoraSettings, UpdateSettings
from fretsaw.training.step_memory import (
    TrainingShape,
    matrices,
    parameter_shapes,
    training_bytes,
)

PARENT = ModelConfig.uniform(
    num_hidden_layers=5, num_key_value_heads=4, intermediate_size=192, vocab_size=500,
    hidden_size=64, num_attention_heads=4, head_dim=16,
)  # fmt: skip
CHILD = replace(
    PARENT,
    blocks=(
        PARENT.blocks[0],
        BlockConfig(num_key_value_heads=2, intermediate_size=96),
        BlockConfig(attention="none", intermediate_size=192),
        BlockConfig(attention="linear", ffn="linear"),
        BlockConfig(num_key_value_heads=1, ffn="none"),
    ),
)
SHAPE = TrainingShape(
    student=CHILD, teacher=PARENT, update=UpdateSettings(), micro_batch_tokens=256, seq_len=64
)
LEAN = UpdateSettings(states="int8", master="bf16")

CASES = {
    "fp32": {},
    "autocast": {"dtype": "bf16"},
    "bf16": {"update": LEAN, "teacher_dtype": "bf16"},
    "no cosine": {"cosine": False},
    "bf16, no cosine": {"update": LEAN, "teacher_dtype": "bf16", "cosine": False},
    "no teacher": {"teacher": None, "dtype": "bf16"},
    "tied": {"student": replace(CHILD, tie_word_embeddings=True)},
    "states": {"update": UpdateSettings(states="bf16")},
    "offload": {"update": UpdateSettings(states="int8", offload=True)},
    "muon": {"update": UpdateSettings(optimizer="muon")},
    "lora": {"lora": LoraSettings(lora_rank=4)},
    "checkpointed": {"activation_checkpointing": True},
    "autocast, checkpointed": {"dtype": "bf16", "activation_checkpointing": True},
    "bf16, checkpointed": {"update": LEAN, "activation_checkpointing": True},
}


def built(shape: TrainingShape) -> tuple[Decoder, torch.nn.Module, Decoder | None, list]:
    """Return the student, what is trained of it, the teacher, and the optimizers."""
    student = Decoder(shape.student)
    student.init_weights(0)
    student.context(1, 1)
    if shape.update.master == "bf16":
        student.bfloat16()
    trained = adapt(student, shape.lora, 0) if shape.lora.lora_rank else student
    optimizers = build_optimizers(trained, shape.update)
    teacher = None
    if shape.teacher is not None:
        teacher = Decoder(shape.teacher)
        teacher.init_weights(1)
        teacher.requires_grad_(False)
        teacher.context(1, 1)
        if shape.teacher_dtype == "bf16":
            teacher.bfloat16()
    if shape.activation_checkpointing:
        for block in student.model.layers:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return student, trained, teacher, optimizers


@pytest.mark.parametrize("case", CASES)
def test_what_is_held_is_what_was_foreseen(case: str) -> None:
    shape: TrainingShape = replace(SHAPE, **CASES[case])
    foreseen = training_bytes(shape)
    student, trained, teacher, optimizers = built(shape)
    rows = shape.micro_batch_tokens // shape.seq_len
    window = torch.randint(500, (rows, shape.seq_len + 1), generator=torch.Generator())
    is_taught = teacher is not None
    objective = Objective(
        kl=float(is_taught), cosine=float(shape.cosine), lm=0.0 if is_taught else 1
    )
    known = [*student.parameters(), *(teacher.parameters() if teacher else ()), window]
    with LiveBytes(known) as live:
        loss, _ = losses(student, teacher, window, objective, shape.dtype)
        held, peak = live.now, live.peak
    # Of the logits two copies stay for the backward: the student's log-probabilities, and p.
    logits = 4 * shape.micro_batch_tokens * shape.student.vocab_size
    kept = (2 if is_taught else 1) * logits
    casts = 0 if shape.activation_checkpointing else foreseen.casts
    assert held - kept == pytest.approx(foreseen.activations + casts, rel=0.02)
    if is_taught:
        assert peak == pytest.approx(foreseen.in_loss, rel=0.02)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    gradients = sum(p.grad.nbytes for p in trained.parameters() if p.grad is not None)
    weights = sum(p.nbytes for p in student.parameters())
    assert weights == foreseen.weights
    assert gradients == foreseen.gradients
    assert saved_bytes(optimizers) == pytest.approx(foreseen.moments + foreseen.host, rel=0.02)
    assert foreseen.teacher == (sum(p.nbytes for p in teacher.parameters()) if teacher else 0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_block_that_is_run_again_holds_what_was_foreseen(dtype: Any) -> None:
    shape = replace(SHAPE, dtype=dtype, activation_checkpointing=True)
    student, *_ = built(replace(shape, activation_checkpointing=False))
    x = torch.randn(4, 64, 64, requires_grad=True)
    context = student.context(4, 64)
    block = student.model.layers[0]  # the largest
    known = [*student.parameters(), x, context.cos, context.sin]
    with LiveBytes(known) as live, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        out = block(x, context)
        held = live.now - out.nbytes + x.nbytes  # the input counts, the output is not kept
    assert held == pytest.approx(training_bytes(shape).recomputed, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_are_those_of_the_decoder(tied: bool) -> None:
    config = replace(CHILD, tie_word_embeddings=tied)
    own = sorted(
        tuple(p.shape) if p.ndim == 2 else (1, *p.shape) for p in Decoder(config).parameters()
    )
    assert sorted(parameter_shapes(config)) == own
    assert sum(rows * columns for rows, columns in parameter_shapes(config)) == num_params(config)
    linears = {
        name.rpartition(".")[2]: tuple(module.weight.shape)
        for name, module in Decoder(config).model.layers[1].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert matrices(config, config.blocks[1]) == linears
