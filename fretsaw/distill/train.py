"""One training loop, read downward: pretraining, continued pretraining and distillation."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fretsaw import artifact
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TrainSettings
from fretsaw.distributed import fsdp
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params
from fretsaw.peers import ALONE, Peers
from fretsaw.stage import StageRun
from fretsaw.tokenizer import Tokenizer
from fretsaw.training.blocks import prepare_blocks
from fretsaw.training.losses import cosine_distance, cross_entropy, kl_divergence
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.precision import autocast
from fretsaw.training.state import TrainingState, load_tensors, save_tensors

STATE_BYTES_PER_PARAMETER = 16  # weights and two moments in float32, and the best weights


@dataclass(frozen=True)
class Objective:
    """What is minimised: a weighted sum of three terms, two of which need a teacher."""

    kl: float = 0.0
    cosine: float = 0.0
    lm: float = 1.0


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
    student = Decoder(config).to(run.device)
    student.init_weights(run.seed)
    metrics = train(student, None, inputs["corpus"], Objective(), settings.train, run)
    fsdp.write_whole(
        student,
        run.peers,
        lambda: checkpoint.write(student, run.folder, like=inputs["corpus"]),
    )
    return metrics


def distill(settings: DistillSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Heal a child: train it to agree with its parent, and never return it worse than it came."""
    student = checkpoint.load(inputs["child"], device=run.device)
    teacher = None
    if settings.needs_teacher:
        if "parent" not in inputs:
            raise ValueError("distill: no parent; give --parent, or set both teacher terms to 0")
        teacher = checkpoint.load(inputs["parent"], device=run.device)
    objective = Objective(settings.kl_weight, settings.cosine_weight, settings.lm_weight)
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
        lambda: checkpoint.write(student, run.folder, like=inputs["child"], dtype=dtype),
    )
    return metrics


def train(
    student: Decoder,
    teacher: Decoder | None,
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
    first ones included.
    """
    # --- set-up -----------------------------------------------------------------------------------
    tokens = loader.read_tokens(corpus / "train.npy")
    heldout = _to_tensor(
        loader.first_rows(corpus / "heldout.npy", settings.seq_len, settings.heldout_tokens),
        run.device,
    )
    artifact.require_disk(run.folder, 2 * STATE_BYTES_PER_PARAMETER * num_params(student.config))
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    rows = settings.batch_tokens // settings.seq_len
    own_rows = run.peers.share(rows, f"batch_tokens {settings.batch_tokens}")
    micro_rows = settings.micro_batch_tokens // settings.seq_len
    prepare_blocks(student, compile=settings.compile, recompute=settings.activation_checkpointing)
    if run.peers.size > 1:
        fsdp.shard(student, run.peers, run.device)
        if teacher is not None:
            fsdp.shard(teacher, run.peers, run.device)
    optimizers = build_optimizers(student, settings.update)
    state = TrainingState(run.resume_folder, student, optimizers, peers=run.peers)
    best_path = run.resume_folder / "best"

    # --- state ------------------------------------------------------------------------------------
    if not state.resume():
        before = heldout_figures(student, teacher, heldout, micro_rows, run.dtype, run.peers)
        state.scalars = {f"before_{name}": value for name, value in before.items()}
        state.scalars["best"] = before["kl" if teacher is not None else "loss"]
        if keep_best:
            save_tensors(best_path, student.state_dict(), run.peers)
        state.save()
    run.progress.rewind(state.step)
    phase = "distilling" if teacher is not None else "training"
    run.progress.start(phase, settings.num_steps, step=state.step)

    # --- loop -------------------------------------------------------------------------------------
    while state.step < settings.num_steps:
        started = time.monotonic()
        window = loader.batch(
            tokens, seed=run.seed, step=state.step, batch_size=rows, seq_len=settings.seq_len
        )
        sums: dict[str, float] = {}
        for micro in _to_tensor(window[own_rows], run.device).split(micro_rows):
            loss, terms = losses(student, teacher, micro, objective, run.dtype)
            (loss / settings.batch_tokens).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        sums = run.peers.total(sums)
        metrics = {name: value / settings.batch_tokens for name, value in sums.items()}
        metrics |= apply_gradients(
            student,
            optimizers,
            settings.update,
            step=state.step,
            num_steps=settings.num_steps,
        )
        state.step += 1

        is_last = state.step == settings.num_steps
        if is_last or state.step % settings.heldout_interval == 0:
            figures = heldout_figures(student, teacher, heldout, micro_rows, run.dtype, run.peers)
            metrics |= {f"heldout_{name}": value for name, value in figures.items()}
            figure = figures["kl" if teacher is not None else "loss"]
            if keep_best and figure < state.scalars["best"]:
                state.scalars |= {"best": figure, "best_step": state.step}
                save_tensors(best_path, student.state_dict(), run.peers)
        metrics["tokens_per_s"] = settings.batch_tokens / (time.monotonic() - started)
        run.step(state.step, metrics, save=state.save, save_every_s=settings.save_every_s)

    # --- the weights worth keeping ----------------------------------------------------------------
    if keep_best:
        load_tensors(best_path, student.state_dict(), run.peers)
    after = heldout_figures(student, teacher, heldout, micro_rows, run.dtype, run.peers)
    return {
        **state.scalars,
        **{f"heldout_{name}": value for name, value in after.items()},
        "tokens": settings.num_steps * settings.batch_tokens,
    }


def losses(
    student: Decoder,
    teacher: Decoder | None,
    window: Int[Tensor, "rows seq_plus_1"],
    objective: Objective,
    dtype: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted loss and its terms, each summed over the tokens of `window`."""
    token_ids, targets = window[:, :-1], window[:, 1:]
    student_states: list[Tensor] | None = [] if teacher is not None and objective.cosine else None
    with autocast(student.device, dtype):
        hidden = student.hidden_states(token_ids, collect=student_states).flatten(0, 1)
        head = student.head_weight
        terms = {}
        if objective.lm:
            terms["lm"] = cross_entropy(hidden, head, targets.flatten())
        if teacher is not None:
            teacher_states: list[Tensor] = []
            with torch.no_grad():
                target = teacher.hidden_states(token_ids, collect=teacher_states).flatten(0, 1)
            if objective.kl:
                terms["kl"] = kl_divergence(target, teacher.head_weight, hidden, head)
            if student_states:
                pairs = zip(teacher_states, student_states, strict=True)
                distances = [cosine_distance(t.flatten(0, 1), s.flatten(0, 1)) for t, s in pairs]
                terms["cosine"] = torch.stack(distances).sum()
    weights = {"kl": objective.kl, "cosine": objective.cosine, "lm": objective.lm}
    loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return loss, {name: value.detach() for name, value in terms.items()}


@torch.no_grad()
def heldout_figures(
    student: Decoder,
    teacher: Decoder | None,
    heldout: Int[Tensor, "rows seq_plus_1"],
    micro_rows: int,
    dtype: str,
    peers: Peers = ALONE,
) -> dict[str, float]:
    """Return held-out cross-entropy and, with a teacher, KL from it, in nats a token."""
    objective = Objective(kl=1.0 if teacher is not None else 0.0, lm=1.0)
    sums: dict[str, float] = {}
    for micro, counts in peers.rounds(heldout.split(micro_rows)):
        _, terms = losses(student, teacher, micro, objective, dtype)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + (value.item() if counts else 0.0)
    sums = peers.total(sums)
    num_tokens = heldout[:, 1:].numel()
    return {"loss" if name == "lm" else name: value / num_tokens for name, value in sums.items()}


def _to_tensor(rows: np.ndarray, device: str) -> Int[Tensor, "rows seq_plus_1"]:
    return torch.from_numpy(np.ascontiguousarray(rows)).long().to(device)
