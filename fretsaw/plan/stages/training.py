"""What training on text takes: pretraining, going on with it, distillation and its teacher."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.budget import first_that_fits, ladder
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TeachSettings, TrainSettings
from fretsaw.model.config import ModelConfig
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import logit_bytes, saved_bytes, token_flops, weight_bytes
from fretsaw.plan.stage_plan import NEVER, Networks, Recipe, StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.training.settings import UpdateSettings
from fretsaw.training.step_memory import TrainDtype, TrainingShape, kept_bytes, training_bytes


def training_work(
    s: TrainSettings,
    student: ModelConfig,
    on: Hardware,
    *,
    teacher: ModelConfig | None = None,
    teacher_dtype: TrainDtype = "fp32",
    cosine: bool = False,
    keeps_best: bool = False,
) -> Work:
    """Steps and held-out measurements; weights, gradients and moments are split among devices."""
    longest = max(phase.seq_len for phase in s.phases)
    shape = TrainingShape(
        student=student,
        teacher=teacher,
        teacher_dtype=teacher_dtype,
        update=s.update,
        lora=s.lora,
        dtype="bf16" if on.dtype == "bf16" else "fp32",
        micro_batch_tokens=s.micro_batch_tokens,
        seq_len=longest,
        cosine=cosine,
        activation_checkpointing=s.activation_checkpointing,
    )
    held, passes = training_bytes(shape), 4 if s.activation_checkpointing else 3
    flops = 0.0
    for phase in s.phases:
        reading = token_flops(teacher, phase.seq_len) if teacher else 0.0
        flops += phase.tokens * (passes * token_flops(student, phase.seq_len) + reading)
    measured = s.heldout_tokens * (s.num_steps / s.heldout_interval + 1)
    reading = token_flops(student, s.seq_len) + (
        token_flops(teacher, s.seq_len) if teacher else 0.0
    )
    keeps_snapshots = s.spikes.max_rollbacks > 0
    kept = kept_bytes(
        student, s.update, s.lora, keeps_best=keeps_best, keeps_snapshots=keeps_snapshots
    )
    split = (held.weights + held.teacher, held.gradients + held.moments)
    rest = held.peak - sum(split) - held.logits
    use = MemoryUse("", split[0] / on.count, rest, split[1] / on.count, held.logits)
    return Work(
        uses=(use,),
        tokens=sum(phase.tokens for phase in s.phases),
        seconds=on.seconds(flops + measured * reading),
        disk=saved_bytes(student, on) + kept,
        remedy=frugal(s.update, use, s),
    )


def frugal(update: UpdateSettings, held: MemoryUse, s: TrainSettings | None = None) -> str:
    """Name what makes a step smaller, what is largest first, of what is not set already."""
    lighter = [] if update.states == "int8" else ["set update.states=int8"]
    lighter += [] if update.master == "bf16" else ["set update.master=bf16"]
    shorter = ["shorten seq_len and micro_batch_tokens"]
    if s is not None and not s.activation_checkpointing:
        shorter.insert(0, "set activation_checkpointing")
    is_long = held.activations > held.weights + held.optimizer
    return ", ".join(shorter + lighter if is_long else lighter + shorter)


def train_alone(s: Any, at: Shapes, on: Hardware) -> Work:
    """Pretraining (from settings alone), and going on with it."""
    return training_work(s.train, at["model"], on, keeps_best=getattr(s, "keep_best", False))


def distill(s: DistillSettings, at: Shapes, on: Hardware) -> Work:
    """The student's step and the live teacher's forward, unless its answers are stored."""
    parent = at["parent"] if "parent" in at and "teacher" not in at and s.needs_teacher else None
    cosine = s.cosine_weight > 0
    work = training_work(
        s.train,
        at["child"],
        on,
        teacher=parent,
        teacher_dtype=s.teacher_dtype,
        cosine=cosine,
        keeps_best=s.keep_best,
    )
    if parent is None:
        return work
    rungs = ladder(
        at["child"],
        parent,
        dtype=on.dtype,
        micro_batch_tokens=s.train.micro_batch_tokens,
        seq_len=s.train.seq_len,
    )
    fits = first_that_fits(rungs, on.device.memory_bytes)
    options = f"`fretsaw distill {fits.options}` would fit one device" if fits else None
    return replace(work, remedy=options or work.remedy)


def teach(s: TeachSettings, at: Shapes, on: Hardware) -> Work:
    """The parent reads the text once; its likeliest tokens are stored."""
    parent, tokens = at["parent"], s.tokens + s.heldout_tokens
    states = 4 * s.micro_batch_tokens * 4 * parent.hidden_size
    return Work(
        uses=(MemoryUse("", weight_bytes(parent), states, logits=logit_bytes(parent)),),
        tokens=tokens,
        seconds=on.alone.seconds(tokens * token_flops(parent, s.seq_len)),
        disk=tokens * (s.top_k * 6 + 8),
    )


def pretrained(
    s: PretrainSettings, corpus: CorpusSettings, tokenized_for: ModelConfig | None
) -> ModelConfig:
    """Return the network that pretraining makes."""
    vocab_size = tokenized_for.vocab_size if tokenized_for else corpus.vocab_size
    return ModelConfig.uniform(
        num_hidden_layers=s.num_hidden_layers,
        num_key_value_heads=s.num_key_value_heads,
        intermediate_size=s.intermediate_size,
        vocab_size=vocab_size,
        hidden_size=s.hidden_size,
        num_attention_heads=s.num_attention_heads,
        head_dim=s.hidden_size // s.num_attention_heads,
        tie_word_embeddings=s.tie_word_embeddings,
        max_position_embeddings=s.max_position_embeddings,
    )


def network_of(stage: Stage, networks: Networks, recipe: Recipe) -> tuple[str, ModelConfig]:
    """Return the network that a pretraining makes, whose vocabulary is its corpus's."""
    corpus = recipe.stage_of(str(stage.inputs["corpus"]))
    tokenized_for = networks.get("corpus")
    if tokenized_for is None and "parent" in corpus.inputs:
        tokenized_for = recipe.config_of(str(corpus.inputs["parent"]))
    return "model", pretrained(stage.settings, corpus.settings, tokenized_for)


def fewer_steps(stage: Stage, stages: Sequence[Stage], steps: int) -> Any:
    """Return the settings of a loop with only so many steps, and one row held out."""
    train = stage.settings.train
    train = replace(
        train,
        tokens=steps * train.batch_tokens,
        lengths=(),
        heldout_tokens=train.seq_len,
        heldout_every=NEVER,
        save_every_s=NEVER,
    )
    return replace(stage.settings, train=train)


def fewer_answers(stage: Stage, stages: Sequence[Stage], steps: int) -> TeachSettings:
    """Return the settings of as many stored answers as the rehearsed distillation reads."""
    s = stage.settings
    tokens, rows = steps * s.micro_batch_tokens, s.seq_len
    for reader in stages:
        if reader.inputs.get("teacher") == stage.name:
            train = reader.settings.train
            tokens, rows = steps * train.batch_tokens, train.seq_len
            break
    return replace(s, tokens=tokens, heldout_tokens=rows)


PRETRAIN = StagePlan(work=train_alone, fewer=fewer_steps, network=network_of)
CPT = StagePlan(work=train_alone, fewer=fewer_steps)
DISTILL = StagePlan(work=distill, fewer=fewer_steps)
TEACH = StagePlan(work=teach, fewer=fewer_answers)
