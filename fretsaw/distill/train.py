"""One training loop, read downward: pretraining, continued pretraining and distillation."""

import bisect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.beside import read_layers, write_layers
from fretsaw.data import loader
from fretsaw.distill.objective import Objective, heldout_figures, losses
from fretsaw.distill.phases import phase_configs
from fretsaw.distill.settings import (
    CptSettings,
    DistillSettings,
    Phase,
    PretrainSettings,
    TrainSettings,
)
from fretsaw.distill.teacher import CachedTeacher, open_cache, teacher_of_rows
from fretsaw.distributed import fsdp
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.training.blocks import prepare_blocks
from fretsaw.training.lora import adapt, merge
from fretsaw.training.optimizer import (
    build_optimizers,
    clear_gradient,
    clip_gradient,
    forget,
    rate_factor,
    take_step,
)
from fretsaw.training.schedule import rewarm
from fretsaw.training.settings import SpikeSettings
from fretsaw.training.spikes import Snapshots, is_spike
from fretsaw.training.state import TrainingState, load_tensors, save_tensors
from fretsaw.training.step_memory import trained_bytes


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
    fsdp.write_whole(
        student,
        run.peers,
        lambda: checkpoint.write(student, run.folder, like=inputs["corpus"]),
    )
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
    like = inputs["parent" if "parent" in inputs else "child"]
    dtype = checkpoint.read_dtype(like)
    fsdp.write_whole(
        student,
        run.peers,
        lambda: checkpoint.write(
            student, run.folder, like=inputs["child"], served_as=inputs["child"], dtype=dtype
        ),
    )
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
    fsdp.write_whole(
        student,
        run.peers,
        lambda: checkpoint.write(
            student, run.folder, like=inputs["model"], served_as=inputs["model"], dtype=dtype
        ),
    )
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


def train(
    student: Decoder,
    teacher: Decoder | CachedTeacher | None,
    corpus: Path,
    objective: Objective,
    settings: TrainSettings,
    run: StageRun,
    *,
    keep_best: bool = False,
) -> dict[str, Any]:
    """Train `student` in place; return held-out figures before and after.

    The loss of a step is the sum over its tokens divided by their global number, however they are
    cut into micro-batches and dealt to processes. With `keep_best` the student ends with the
    weights whose held-out figure (KL where there is a teacher, else cross-entropy) was best, its
    first ones included; where there are several phases, best of the last one. `state.step` counts
    batches, lost ones too: a batch is a function of (seed, step) whatever a rollback threw away.
    """
    # --- set-up -----------------------------------------------------------------------------------
    phases, update, spikes = settings.phases, settings.update, settings.spikes
    is_live = isinstance(teacher, Decoder)
    configs = phase_configs(
        student.config, phases, teacher.config.max_position_embeddings if is_live else None
    )
    for phase in phases:  # before anything is done
        what = f"batch_tokens {settings.batch_tokens} at seq_len {phase.seq_len}"
        run.peers.share(settings.batch_tokens // phase.seq_len, what)
    tokens = loader.read_tokens(corpus / "train.npy")
    weights, moments = trained_bytes(student.config, update, settings.lora)
    num_kept = 3 if spikes.max_rollbacks else 0
    artifact.require_disk(run.folder, int(3 * (weights + moments) + (1 + num_kept) * weights))
    if is_live:
        teacher.eval().requires_grad_(False)
    prepare_blocks(student, compile=settings.compile, recompute=settings.activation_checkpointing)
    trained = adapt(student, settings.lora, run.seed) if settings.lora.lora_rank else student
    if run.peers.size > 1:
        fsdp.shard(student, run.peers, run.device)
        if is_live:
            fsdp.shard(teacher, run.peers, run.device)
    optimizers = build_optimizers(trained, update, seed=run.seed)
    state = TrainingState(run.resume_folder, trained, optimizers, peers=run.peers)
    snapshots = Snapshots(run.resume_folder, run.peers)
    best_path = run.resume_folder / "best"
    figure_name = "kl" if teacher is not None else "loss"

    def measure(phase: Phase) -> dict[str, float]:
        held = loader.first_rows(corpus / "heldout.npy", phase.seq_len, settings.heldout_tokens)
        micro_rows = settings.micro_batch_tokens // phase.seq_len
        rows = _to_tensor(held, run.device)
        return heldout_figures(student, teacher, rows, micro_rows, run.dtype, run.peers)

    # --- state ------------------------------------------------------------------------------------
    if state.resume():
        snapshots.drop_after(num_done(state))
    run.progress.rewind(state.step)
    label = "distilling" if teacher is not None else "training"
    run.progress.start(label, settings.num_steps + num_lost(state), step=state.step)

    # --- loop -------------------------------------------------------------------------------------
    while (done := num_done(state)) < settings.num_steps:
        started = time.monotonic()
        index = bisect.bisect_right(settings.phase_ends, done)
        phase = phases[index]
        student.set_context(configs[index])
        if state.scalars.get("phase") != index:
            before = measure(phase)
            prefix = f"phase{index}_before" if index else "before"
            state.scalars |= {f"{prefix}_{name}": value for name, value in before.items()}
            state.scalars |= {"phase": index, "best": before[figure_name]}
            if keep_best:
                save_tensors(best_path, trained.state_dict(), run.peers)
            if phase.fresh:
                forget(optimizers)
                state.scalars["restarted"] = done
            state.recent = []
            if spikes.max_rollbacks:
                snapshots.save(done, trained.state_dict())
            state.save()

        rows = settings.batch_tokens // phase.seq_len
        micro_rows = settings.micro_batch_tokens // phase.seq_len
        available = loader.num_windows(tokens, phase.seq_len)
        windows = loader.order(available, rows, seed=run.seed, step=state.step)
        sums: dict[str, float] = {}
        share = windows[run.peers.share(rows, "batch_tokens")]
        for at in range(0, len(share), micro_rows):
            own = share[at : at + micro_rows]
            micro = _to_tensor(loader.gather(tokens, own, phase.seq_len), run.device)
            taught = teacher_of_rows(teacher, own, run.device)
            loss, terms = losses(student, taught, micro, objective, run.dtype)
            (loss / settings.batch_tokens).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        sums = run.peers.total(sums)
        metrics = {name: value / settings.batch_tokens for name, value in sums.items()}
        norm = metrics["grad_norm"] = clip_gradient(trained, update)

        figures = [objective.weigh(metrics), norm]
        if spikes.max_rollbacks and is_spike(
            state.recent, figures, mads=spikes.spike_mads, window=spikes.spike_window
        ):
            go_back(state, snapshots, spikes, figures, since=(0, *settings.phase_ends)[index])
            metrics["rollback_to"] = float(num_done(state))
            run.progress.start(label, settings.num_steps + num_lost(state), step=state.step)
            run.step(state.step, metrics, save=state.save)
            snapshots.drop_after(num_done(state))
            continue
        state.recent = [*state.recent, figures][-spikes.spike_window :]
        factor = rate_factor(update, step=done, num_steps=settings.num_steps)
        if "restarted" in state.scalars:
            factor *= rewarm(done - int(state.scalars["restarted"]), spikes.rewarm_steps)
        metrics["lr"] = take_step(optimizers, update, norm, factor, step=state.step)
        state.step, done = state.step + 1, done + 1

        is_last = done == settings.num_steps
        if is_last or done % settings.heldout_interval == 0:
            measured = measure(phase)
            metrics |= {f"heldout_{name}": value for name, value in measured.items()}
            if keep_best and measured[figure_name] < state.scalars["best"]:
                state.scalars |= {"best": measured[figure_name], "best_step": state.step}
                save_tensors(best_path, trained.state_dict(), run.peers)
        metrics["tokens_per_s"] = settings.batch_tokens / (time.monotonic() - started)
        is_snapshot = spikes.max_rollbacks > 0 and done % spikes.snapshot_every == 0
        if is_snapshot:
            snapshots.save(done, trained.state_dict())
        save_every_s = 0.0 if is_snapshot else settings.save_every_s
        run.step(state.step, metrics, save=state.save, save_every_s=save_every_s)
        if is_snapshot:
            snapshots.trim()

    # --- the weights worth keeping ----------------------------------------------------------------
    student.set_context(configs[-1])
    if keep_best:
        load_tensors(best_path, trained.state_dict(), run.peers)
    if settings.lora.lora_rank:
        merge(student)
    after = measure(phases[-1])
    kept = {name: v for name, v in state.scalars.items() if name not in ("phase", "restarted")}
    return {
        **kept,
        **{f"heldout_{name}": value for name, value in after.items()},
        "tokens": settings.num_steps * settings.batch_tokens,
    }


def num_lost(state: TrainingState) -> int:
    """Return how many steps rollbacks threw away."""
    return int(state.scalars.get("lost", 0))


def num_done(state: TrainingState) -> int:
    """Return how many steps count."""
    return state.step - num_lost(state)


def go_back(
    state: TrainingState,
    snapshots: Snapshots,
    spikes: SpikeSettings,
    figures: Sequence[float],
    *,
    since: int,
) -> None:
    """Return to earlier weights with a fresh optimizer; the batches since are not seen again.

    `since` is where the phase began, which a rollback never leaves. Raises `ValueError` once
    `max_rollbacks` of them are used up.
    """
    num_before = int(state.scalars.get("rollbacks", 0))
    what = f"step {state.step}: loss {figures[0]:.4g} with a gradient norm of {figures[1]:.4g}"
    if num_before >= spikes.max_rollbacks:
        raise ValueError(
            f"{what} is a spike after {num_before} rollbacks; lower learning_rate, look at the "
            "text of these steps, or raise max_rollbacks"
        )
    back_to = snapshots.restore(state.model, since)
    say(f"{what} is a spike; back to the weights after {back_to} steps, with other batches")
    clear_gradient(state.optimizers)
    forget(state.optimizers)
    state.step += 1
    lost = state.step - back_to
    state.scalars |= {"rollbacks": num_before + 1, "lost": lost, "restarted": back_to}


def _to_tensor(rows: np.ndarray, device: str) -> Int[Tensor, "rows seq_plus_1"]:
    return torch.from_numpy(np.ascontiguousarray(rows)).long().to(device)
