"""Closed-form memory of a training step on one device, phase by phase. Standard library only.

Weights, gradients and moments are exact; activations are what autograd keeps of this decoder for
the backward pass, as the CPU's kernels keep it (an accelerator's fused norms keep less).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.kinds import MatrixShapes
from fretsaw.model.size import block_matrices, num_params
from fretsaw.training.settings import (
    MAX_LOGITS,
    MOMENT_BLOCK,
    MOMENT_SLICE,
    SMALL_PARAMETER,
    LoraSettings,
    UpdateSettings,
)

TrainDtype = Literal["fp32", "bf16"]
WIDTH = {"fp32": 4, "bf16": 2}
LOGIT_COPIES = 5  # in the KL's forward: both log-probabilities, p, their difference, the product
STEP_COPIES = 9  # float32 slices that one step of a lean AdamW holds


@dataclass(frozen=True, kw_only=True)
class TrainingShape:
    """What decides the memory of a step."""

    student: ModelConfig
    teacher: ModelConfig | None = None  # None: cached, or none at all
    teacher_dtype: TrainDtype = "fp32"
    update: UpdateSettings
    lora: LoraSettings = field(default_factory=LoraSettings)
    dtype: TrainDtype = "fp32"  # of matrix work, as --dtype
    micro_batch_tokens: int
    seq_len: int
    cosine: bool = True  # needs the live teacher's hidden states
    activation_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingBytes:
    """Bytes of every part, and of the host where moments are offloaded."""

    weights: float
    gradients: float
    moments: float
    teacher: float
    activations: float  # kept from the forward to the backward
    late: float  # of the activations, what is made only after the chunks of logits are gone
    casts: float  # bfloat16 copies of the blocks' matrices that autocast makes
    recomputed: float  # the largest block's inside, where blocks are run again
    backward: float  # gradients of activations, where the widest block is
    logits: float  # of one chunk, all copies, and the two networks' outputs
    step: float  # float32 slices of a lean step
    host: float

    @property
    def peak(self) -> float:
        """The most at once: in the loss, in a block's backward, or in the optimizer's step."""
        kept = self.weights + self.gradients + self.moments + self.teacher
        again = self.recomputed if self.recomputed else self.casts
        in_block = self.activations + again + self.backward
        return kept + max(self.in_loss, in_block, self.step)

    @property
    def in_loss(self) -> float:
        """What is kept or passes by while logits are there."""
        return self.activations - self.late + self.casts + self.logits


def training_bytes(shape: TrainingShape) -> TrainingBytes:
    """Return what a step of this shape holds."""
    student, update, tokens = shape.student, shape.update, shape.micro_batch_tokens
    width = WIDTH[update.master]
    trained = list(trained_shapes(student, shape.lora))
    gradients, moments = trained_bytes(student, update, shape.lora)
    frozen = width * num_params(student) if shape.lora.lora_rank else 0
    blocks = [tokens * _block_bytes(shape, block) for block in student.blocks]
    largest = max(student.blocks, key=lambda block: _block_bytes(shape, block))
    inputs = tokens * student.hidden_size * width * student.num_hidden_layers + _plain_tables(shape)
    is_again = shape.activation_checkpointing
    inside = inputs if is_again else sum(blocks) + _table_bytes(shape)
    chunk = min(tokens * student.vocab_size, MAX_LOGITS)
    return TrainingBytes(
        weights=frozen + gradients,
        gradients=gradients,
        moments=0.0 if update.offload else moments,
        teacher=WIDTH[shape.teacher_dtype] * num_params(shape.teacher) if shape.teacher else 0.0,
        activations=_ends_bytes(shape) + inside,
        late=tokens * _late_bytes(shape),
        casts=_cast_bytes(shape, *student.blocks),
        recomputed=max(blocks) + _cast_bytes(shape, largest) if is_again else 0.0,
        backward=2 * tokens * _compute_width(shape) * largest.intermediate_size,
        logits=LOGIT_COPIES * 4 * chunk + tokens * _output_bytes(shape),
        step=_step_bytes(trained, update),
        host=moments if update.offload else 0.0,
    )


# --- weights and moments --------------------------------------------------------------------------


def matrices(config: ModelConfig, block: BlockConfig) -> MatrixShapes:
    """Return (rows, columns) of a block's matrices by the last part of their names."""
    attention, ffn = block_matrices(config, block)
    return attention | ffn


def parameter_shapes(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """Yield (rows, columns) of every parameter, a norm being one row."""
    tables = 1 if config.tie_word_embeddings else 2
    yield from [(config.vocab_size, config.hidden_size)] * tables
    yield (1, config.hidden_size)
    for block in config.blocks:
        yield from [(1, config.hidden_size)] * _num_norms(block)
        yield from matrices(config, block).values()


def _num_norms(block: BlockConfig) -> int:
    return (block.attention != "none") + (block.ffn != "none")


def trained_shapes(config: ModelConfig, lora: LoraSettings) -> Iterator[tuple[int, int]]:
    """Yield (rows, columns) of every parameter that is trained: all, or LoRA's factors."""
    if not lora.lora_rank:
        yield from parameter_shapes(config)
        return
    for block in config.blocks:
        for name, (rows, columns) in matrices(config, block).items():
            if name in lora.lora_matrices:
                yield (lora.lora_rank, columns)
                yield (rows, lora.lora_rank)


def trained_bytes(
    config: ModelConfig, update: UpdateSettings, lora: LoraSettings
) -> tuple[float, float]:
    """Return the bytes of what is trained, and of its moments: what a saved state holds."""
    trained = list(trained_shapes(config, lora))
    weights = WIDTH[update.master] * sum(rows * columns for rows, columns in trained)
    moments = sum(_moment_bytes(rows, columns, update) for rows, columns in trained)
    if update.optimizer == "muon" and not lora.lora_rank:  # one momentum for the blocks' matrices
        sizes = (matrices(config, block).values() for block in config.blocks)
        moments -= 4 * sum(rows * columns for block in sizes for rows, columns in block)
    return weights, moments


def kept_bytes(
    config: ModelConfig,
    update: UpdateSettings,
    lora: LoraSettings,
    *,
    keeps_best: bool = False,
    keeps_snapshots: bool = False,
) -> int:
    """Return the most that a run keeps on disk to go on from, with what is being written.

    Two states, the best weights of each and of now, two snapshots, and one more of every kind.
    """
    weights, moments = trained_bytes(config, update, lora)
    return int(3 * (weights + moments) + (4 * keeps_best + 3 * keeps_snapshots) * weights)


def _moment_bytes(rows: int, columns: int, update: UpdateSettings) -> float:
    """Return the bytes of one parameter's two moments."""
    if update.states == "fp32" or rows * columns <= SMALL_PARAMETER:
        return 8 * rows * columns
    if update.states == "bf16":
        return 4 * rows * columns
    return rows * (2 * columns + 2 * 4 * math.ceil(columns / MOMENT_BLOCK))


def _step_bytes(trained: list[tuple[int, int]], update: UpdateSettings) -> float:
    if not update.is_lean:
        return 0.0
    largest = max(rows * columns for rows, columns in trained)
    return STEP_COPIES * 4 * min(largest, MOMENT_SLICE)


# --- activations ----------------------------------------------------------------------------------


def _compute_width(shape: TrainingShape) -> int:
    return WIDTH["bf16" if "bf16" in (shape.dtype, shape.update.master) else "fp32"]


def _is_autocast(shape: TrainingShape) -> bool:
    """Whether weights in float32 are multiplied in bfloat16, which casts each input anew."""
    return shape.dtype == "bf16" and shape.update.master == "fp32"


def _norm_bytes(shape: TrainingShape) -> int:
    """A norm's input and its reciprocal root; for the weight's gradient the normalised input too.

    Always in float32.
    """
    copies = 1 if shape.lora.lora_rank else 2
    return 4 * (copies * shape.student.hidden_size + 1)


def _block_bytes(shape: TrainingShape, block: BlockConfig) -> int:
    """Return the bytes a token leaves in a block, its input with them."""
    config, width = shape.student, _compute_width(shape)
    halves = zip(
        (block.attention_kind, block.ffn_kind),
        (block.num_key_value_heads, block.intermediate_size),
        block_matrices(config, block),
        strict=True,
    )
    total = _num_norms(block) * _norm_bytes(shape)
    for kind, size, matrices in halves:
        if matrices:
            # Autocast casts the normed input anew for every matrix that reads it.
            readers = max(1, len(matrices) - 1) if _is_autocast(shape) else 1
            total += width * (readers * config.hidden_size + kind.kept(config, size))
            total += 4 * config.num_attention_heads * kind.has_cache  # log-sum of every head
    return total


def _cast_bytes(shape: TrainingShape, *blocks: BlockConfig) -> int:
    """Return the bytes of the bfloat16 copies that autocast makes of these blocks' matrices.

    They stay until the backward, or where blocks are run again until the end of the forward.
    """
    if not _is_autocast(shape):
        return 0
    sizes = (matrices(shape.student, block).values() for block in blocks)
    return sum(2 * rows * columns for block in sizes for rows, columns in block)


def _late_bytes(shape: TrainingShape) -> int:
    """Return the bytes a token's cosines keep beyond the hidden states that were there before."""
    if not shape.cosine or shape.teacher is None:
        return 0
    hidden, of_student, of_teacher = shape.student.hidden_size, 0, 0
    if shape.update.master == "bf16":  # a float32 copy, of what is a block's input where run again
        of_student = hidden * (4 if shape.activation_checkpointing else 2)
    if shape.teacher_dtype == "bf16":
        of_teacher = 2 * hidden
    return shape.student.num_hidden_layers * (of_student + of_teacher + 8)


def _output_bytes(shape: TrainingShape) -> int:
    """Return the bytes a token's last hidden states take in the loss beside what the graph keeps.

    The teacher's, and the student's in float32 where a bfloat16 copy of it enters the head.
    """
    teachers = WIDTH[shape.teacher_dtype] * shape.teacher.hidden_size if shape.teacher else 0
    return teachers + (4 * shape.student.hidden_size if _is_autocast(shape) else 0)


def _table_bytes(shape: TrainingShape) -> int:
    """Return the bytes of cosines and sines: one float32 pair, or bfloat16 pairs for q and k."""
    config = shape.student
    if _compute_width(shape) == 4:
        return _plain_tables(shape)
    num_layers = sum(block.attention_kind.has_cache for block in config.blocks)
    return num_layers * 4 * 2 * shape.seq_len * config.head_dim


def _plain_tables(shape: TrainingShape) -> int:
    return 2 * 4 * shape.seq_len * shape.student.head_dim


def _ends_bytes(shape: TrainingShape) -> float:
    """Return what is kept outside the blocks: ids, final norm, the head's input, cosines."""
    config, tokens = shape.student, shape.micro_batch_tokens
    hidden = config.hidden_size
    per_token = 8 + _norm_bytes(shape) + _compute_width(shape) * hidden
    if shape.cosine and shape.teacher is not None:
        copies = 2 if shape.update.master == "bf16" else 1  # float32 of the student's, where cast
        per_token += config.num_hidden_layers * (4 * copies * hidden + 8)
    cast_head = 2 * config.vocab_size * hidden if _is_autocast(shape) else 0
    return tokens * per_token + cast_head
