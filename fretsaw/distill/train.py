"""One training loop, read downward: pretraining, continued pretraining and distillation."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.beside import read_layers, write_layers
from fretsaw.data import loader
from fretsaw.distill.lesson import Lesson
from fretsaw.distill.objective import Objective
from fretsaw.distill.phases import phase_configs
from fretsaw.distill.settings import CptSettings, DistillSettings, PretrainSettings, TrainSettings
from fretsaw.distill.teacher import CachedTeacher, open_cache
from fretsaw.distributed import fsdp
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.training.best_weights import BestWeights
from fretsaw.training.blocks import prepare_blocks
from fretsaw.training.lora import adapt, merge
from fretsaw.training.optimizer import (
    build_optimizers,
    clip_gradient,
    forget,
    rate_factor,
    take_step,
)
from fretsaw.training.spikes import SpikeWatch
from fretsaw.training.state import TrainingState
from fretsaw.training.step_memory import kept_bytes


def pretrain(
    settings: PretrainSettings, inputs: Mapping[str, Path], run: StageRun
) -> dict[str, Any]:
    """Train a fresh Llama on a corpus."""
    tokenizer = Tokenizer.from_folder(inputs["corpus"])
    config = ModelConfig.uniform(
        num_hidden_layers=settings.num_hidden_layers,
        num_key_value_heads=settings.num_key_value_heads,
        intermediate_size=settings.intermediate_size,
        vocab_size=tokenizer.vocab_size,
        hidden_size=settings.hidden_size,
        num_attention_heads=settings.num_attention_heads,
        head_dim=settings.hidden_size // settings.num_attention_heads,
        max_position_embeddings=settings.max_position_embeddings,
        rope_theta=settings.rope_theta,
        tie_word_embeddings=settings.tie_word_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    student = Decoder(config).to(run.load_device)
    student.init_weights(run.seed)
    student.to(_dtype(settings.train))
    metrics = train(student, None, inputs["corpus"], Objective(), settings.train, run)
    write = partial(checkpoint.write, student, run.folder, like=inputs["corpus"])
    fsdp.write_whole(student, run.peers, write)
    return metrics


def distill(settings: DistillSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Heal a child: train it to agree with its parent, and never return it worse than it came."""
    teacher = _teacher(settings, inputs, run)
    student = checkpoint.load(inputs["child"], device=run.load_device, dtype=_dtype(settings.train))
    stands = read_layers(inputs["child"])
    depth = teacher.config.num_hidden_layers if isinstance(teacher, Decoder) else None
    if stands is not None and depth is not None and stands.of != depth:
        stands = None  # of another model than this teacher: the layers are paired one for one
    objective = Objective(
        settings.kl_weight,
        settings.cosine_weight,
        settings.lm_weight,
        layers=stands.after if stands else (),
    )
    if stands and run.peers.rank == 0:
        write_layers(run.folder, stands)
    metrics = train(
        student,
        teacher,
        inputs["corpus"],
        objective,
        settings.train,
        run,
        keep_best=settings.keep_best,
    )
    dtype = checkpoint.read_dtype(inputs.get("parent", inputs["child"]))
    _write(student, inputs["child"], dtype, run)
    return metrics


def continue_pretraining(
    settings: CptSettings, inputs: Mapping[str, Path], run: StageRun
) -> dict[str, Any]:
    """Go on training any checkpoint on text."""
    dtype = checkpoint.read_dtype(inputs["model"])
    student = checkpoint.load(inputs["model"], device=run.load_device, dtype=_dtype(settings.train))
    metrics = train(
        student,
        None,
        inputs["corpus"],
        Objective(),
        settings.train,
        run,
        keep_best=settings.keep_best,
    )
    _write(student, inputs["model"], dtype, run)
    return metrics


def _teacher(
    settings: DistillSettings, inputs: Mapping[str, Path], run: StageRun
) -> Decoder | CachedTeacher | None:
    """Return what the child learns from: the live parent, its cache, or nothing."""
    if not settings.needs_teacher:
        return None
    if "teacher" not in inputs:
        if "parent" not in inputs:
            raise ValueError(
                "distill: no parent; give --parent or --teacher, or set both teacher terms to 0"
            )
        dtype = torch.bfloat16 if settings.teacher_dtype == "bf16" else torch.float32
        return checkpoint.load(inputs["parent"], device=run.load_device, dtype=dtype)
    if settings.cosine_weight:
        raise ValueError(
            f"cosine_weight: {settings.cosine_weight}, but a cache holds no hidden states; set it "
            "to 0, or give --parent without --teacher"
        )
    loop = settings.train
    if loop.lengths:
        raise ValueError(f"lengths: {loop.lengths}, but a cache holds rows of one length")
    return open_cache(
        inputs["teacher"],
        inputs,
        seq_len=loop.seq_len,
        tokens=loop.num_steps * loop.batch_tokens,
        heldout_tokens=loop.heldout_tokens,
        seed=run.seed,
    )


def _dtype(settings: TrainSettings) -> torch.dtype:
    """Return what the trained weights are held in."""
    return torch.bfloat16 if settings.update.master == "bf16" else torch.float32


def _write(student: Decoder, origin: Path, dtype: str, run: StageRun) -> None:
    """Write the trained checkpoint with all that stands beside the one it came from."""
    write = partial(
        checkpoint.write, student, run.folder, like=origin, served_as=origin, dtype=dtype
    )
    fsdp.write_whole(student, run.peers, write)


# --- the loop -------------------------------------------------------------------------------------


def train(
    student: Decoder, teacher: Decoder | CachedTeacher | None, corpus: Path, objective: Objective,
    settings: TrainSettings, run: StageRun, *, keep_best: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train `student` in place; return held-out figures before and after.

    The loss of a step is the sum over its tokens divided by their global number, however they are
    cut into micro-batches and dealt to processes. With `keep_best` the student ends with the best
    weights of its last phase, by held-out KL or, without a teacher, by cross-entropy.
    """
    # --- set-up -----------------------------------------------------------------------------------
    configs = checked_configs(student, teacher, settings, run)
    tokens, heldout = loader.read_tokens(corpus / "train.npy"), corpus / "heldout.npy"
    lesson = Lesson(student, teacher, objective, tokens, heldout, settings, run)
    num_bytes = kept_bytes(
        student.config,
        settings.update,
        settings.lora,
        keeps_best=keep_best,
        keeps_snapshots=settings.spikes.max_rollbacks > 0,
    )
    artifact.require_disk(run.folder, num_bytes)
    trained = prepare_networks(student, teacher, settings, run)
    optimizers = build_optimizers(trained, settings.update, seed=run.seed)
    state = TrainingState(run.resume_folder, trained, optimizers, peers=run.peers)
    watch = SpikeWatch(settings.spikes, state)
    best = BestWeights(state, "kl" if teacher is not None else "loss", keep_best)
    label = "distilling" if teacher is not None else "training"

    # --- state ------------------------------------------------------------------------------------
    if state.resume():
        watch.snapshots.drop_after(watch.num_done)
    run.progress.rewind(state.step)
    run.progress.start(label, settings.num_steps + watch.num_lost, step=state.step)

    # --- loop -------------------------------------------------------------------------------------
    while (done := watch.num_done) < settings.num_steps:
        started = time.monotonic()
        index = settings.phase_at(done)
        seq_len = settings.phases[index].seq_len
        student.set_context(configs[index])
        if state.scalars.get("phase") != index:
            begin_phase(index, lesson, state, watch, best)

        metrics = lesson.add_gradient(seq_len, state.step)
        norm = metrics["grad_norm"] = clip_gradient(trained, settings.update)
        figures = [objective.weigh(metrics), norm]
        if watch.sees_spike(figures):
            watch.go_back(figures, since=settings.phase_starts[index])
            report_rollback(metrics, settings, watch, run)
            continue
        watch.remember(figures)
        factor = rate_factor(settings.update, step=done, num_steps=settings.num_steps)
        factor *= watch.rewarm_factor
        metrics["lr"] = take_step(optimizers, settings.update, norm, factor, step=state.step)
        state.step, done = state.step + 1, done + 1
        if done == settings.num_steps or done % settings.heldout_interval == 0:
            metrics |= examine(lesson, seq_len, best)
        metrics["tokens_per_s"] = settings.batch_tokens / (time.monotonic() - started)
        report(metrics, settings, watch, run)

    # --- the weights worth keeping ----------------------------------------------------------------
    student.set_context(configs[-1])
    best.restore()
    if settings.lora.lora_rank:
        merge(student)
    return outcome(lesson, state)


# --- its steps ------------------------------------------------------------------------------------


def checked_configs(
    student: Decoder,
    teacher: Decoder | CachedTeacher | None,
    settings: TrainSettings,
    run: StageRun,
) -> list[ModelConfig]:
    """Return the student's config in every phase.

    Raises `ValueError` where rows are too long or do not divide among the processes.
    """
    is_live = isinstance(teacher, Decoder)
    teacher_context = teacher.config.max_position_embeddings if is_live else None
    configs = phase_configs(student.config, settings.phases, teacher_context)
    for phase in settings.phases:
        what = f"batch_tokens {settings.batch_tokens} at seq_len {phase.seq_len}"
        run.peers.share(settings.batch_tokens // phase.seq_len, what)
    return configs


def prepare_networks(
    student: Decoder,
    teacher: Decoder | CachedTeacher | None,
    settings: TrainSettings,
    run: StageRun,
) -> nn.Module:
    """Freeze the teacher, shard both networks, and return what is trained.

    That is the student, or the factors that LoRA puts beside its matrices.
    """
    if isinstance(teacher, Decoder):
        teacher.eval().requires_grad_(False)
    prepare_blocks(student, compile=settings.compile, recompute=settings.activation_checkpointing)
    trained = adapt(student, settings.lora, run.seed) if settings.lora.lora_rank else student
    if run.peers.size > 1:
        fsdp.shard(student, run.peers, run.device)
        if isinstance(teacher, Decoder):
            fsdp.shard(teacher, run.peers, run.device)
    return trained


def begin_phase(
    index: int, lesson: Lesson, state: TrainingState, watch: SpikeWatch, best: BestWeights
) -> None:
    """Note what a phase begins with and save it, so that a resumed run goes on from there."""
    phase = lesson.settings.phases[index]
    figures = lesson.measure(phase.seq_len)
    prefix = f"phase{index}_before" if index else "before"
    state.scalars |= {f"{prefix}_{name}": value for name, value in figures.items()}
    state.scalars["phase"] = index
    best.begin(figures)
    if phase.fresh:
        forget(state.optimizers)
        state.scalars["restarted"] = watch.num_done
    watch.begin()
    state.save()


def examine(lesson: Lesson, seq_len: int, best: BestWeights) -> dict[str, float]:
    """Return the held-out figures as metrics; the weights are kept where they are the best."""
    figures = lesson.measure(seq_len)
    best.consider(figures)
    return {f"heldout_{name}": value for name, value in figures.items()}


def report_rollback(
    metrics: dict[str, float], settings: TrainSettings, watch: SpikeWatch, run: StageRun
) -> None:
    """Report a step that ended in a rollback, with more to come for those lost; save the state."""
    state = watch.state
    metrics["rollback_to"] = float(watch.num_done)
    total = settings.num_steps + watch.num_lost
    run.progress.start(run.progress.phase, total, step=state.step)
    run.step(state.step, metrics, save=state.save)
    watch.snapshots.drop_after(watch.num_done)


def report(
    metrics: dict[str, float], settings: TrainSettings, watch: SpikeWatch, run: StageRun
) -> None:
    """Report a finished step; save the state where it is time, and always with a snapshot."""
    state, is_snapshot = watch.state, watch.is_snapshot_due
    if is_snapshot:
        watch.take_snapshot()
    save_every_s = 0.0 if is_snapshot else settings.save_every_s
    run.step(state.step, metrics, save=state.save, save_every_s=save_every_s)
    if is_snapshot:
        watch.snapshots.trim()


def outcome(lesson: Lesson, state: TrainingState) -> dict[str, Any]:
    """Return what the run noted, and the held-out figures of the weights it ends with."""
    settings = lesson.settings
    after = lesson.measure(settings.phases[-1].seq_len)
    noted = {name: v for name, v in state.scalars.items() if name not in ("phase", "restarted")}
    return {
        **noted,
        **{f"heldout_{name}": value for name, value in after.items()},
        "tokens": settings.num_steps * settings.batch_tokens,
    }
