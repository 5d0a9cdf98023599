"""Supervised fine-tuning on conversations of both modes: the loss stands on the answers alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn

from fretsaw.chat.reasoning import MODES, check_tags
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.template import read_chat_templates
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.adapter_out import check_base, write_adapter
from fretsaw.data import loader
from fretsaw.data.pack import Batch, pack
from fretsaw.distributed import fsdp
from fretsaw.model.decoder import Decoder
from fretsaw.sft.examples import (
    Example,
    batch_examples,
    micro_batches,
    read_examples,
    row_length,
)
from fretsaw.sft.seen import count_seen, seen_table
from fretsaw.sft.settings import Average, SftSettings
from fretsaw.sft.taught import taught_format, told
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.stage.progress import say
from fretsaw.stage.text_table import aligned
from fretsaw.training.best_weights import BestWeights
from fretsaw.training.lora import adapt, by_module, merge
from fretsaw.training.losses import packed_logprobs
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.state import TrainingState
from fretsaw.training.step_memory import kept_bytes


def tune(settings: SftSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Teach a checkpoint the chat format and the toggle, with the tokens it lacks added.

    Raises `ValueError` where tokens are added beside factors, which would leave them alike.
    """
    # --- set-up -----------------------------------------------------------------------------------
    if settings.saved == "adapter":
        check_base(inputs["model"])
    dtype = torch.bfloat16 if settings.update.master == "bf16" else torch.float32
    model, format, added = load_for_chat(inputs["model"], run.load_device, dtype)
    check_trained(settings, added)
    say(f"sft: {told(format, added)}")
    row_len = row_length(settings, model.config)
    train, heldout, num_skipped = read_examples(settings, inputs, format, row_len, run.seed)
    rows = pack([len(example.token_ids) for example in train], row_len)
    rows_per_step = min(len(rows), max(1, settings.batch_tokens // row_len))
    own_rows = run.peers.share(rows_per_step, f"batch_tokens {settings.batch_tokens}")
    micro_rows = max(1, settings.micro_batch_tokens // row_len)
    num_steps = -(-settings.epochs * len(rows) // rows_per_step)
    heldout_every = settings.heldout_every or max(1, num_steps // 10)
    seen = count_seen(train, rows, rows_per_step, num_steps, run.seed)
    for line in aligned(seen_table(seen)):
        say(f"sft: {line}")
    num_bytes = kept_bytes(
        model.config, settings.update, settings.lora, keeps_best=settings.keep_best
    )
    artifact.require_disk(run.folder, num_bytes)
    trained = adapt(model, settings.lora, run.seed) if settings.lora.lora_rank else model
    if run.peers.size > 1:
        fsdp.shard(model, run.peers, run.device)
    optimizers = build_optimizers(trained, settings.update)
    state = TrainingState(run.resume_folder, trained, optimizers, peers=run.peers)
    best = BestWeights(state, "loss", settings.keep_best)
    measure = partial(heldout_losses, model, heldout, row_len, micro_rows, run.dtype, run.peers)

    # --- state ------------------------------------------------------------------------------------
    if not state.resume():
        measured = measure()
        state.scalars = {f"before_{name}": value for name, value in measured.items()}
        if settings.keep_best:
            best.begin(over_modes(measured))
        state.save()
    run.progress.rewind(state.step)
    run.progress.start("tuning", num_steps, step=state.step)

    # --- loop -------------------------------------------------------------------------------------
    while state.step < num_steps:
        started = time.monotonic()
        chosen = loader.order(len(rows), rows_per_step, seed=run.seed, step=state.step)
        own = [rows[i] for i in chosen[own_rows]]
        batches = micro_batches(train, own, row_len, micro_rows)
        metrics = add_gradient(
            model, batches, run.dtype, run.peers, run.check_sooner, average=settings.average
        )
        metrics |= apply_gradients(
            trained, optimizers, settings.update, step=state.step, num_steps=num_steps
        )
        state.step += 1
        if state.step == num_steps or state.step % heldout_every == 0:
            measured = measure()
            best.consider(over_modes(measured))
            metrics |= {f"heldout_{name}": value for name, value in measured.items()}
            state.scalars |= {f"heldout_{name}": value for name, value in measured.items()}
        num_tokens = sum(len(train[i].token_ids) for row in chosen for i in rows[row])
        metrics["tokens_per_s"] = num_tokens / (time.monotonic() - started)
        run.step(state.step, metrics, save=state.save, save_every_s=settings.save_every_s)

    # --- the weights worth keeping ----------------------------------------------------------------
    best.restore()
    if settings.keep_best:
        state.scalars |= {f"heldout_{name}": value for name, value in measure().items()}
    write_tuned(model, trained, format, added, settings, inputs["model"], run)
    return {
        **state.scalars,
        "rows": len(train),
        "rows_skipped": num_skipped,
        "steps": num_steps,
        "tokens": settings.epochs * sum(len(example.token_ids) for example in train),
        "seen": seen,
        "added_tokens": added,
    }


# --- its steps ------------------------------------------------------------------------------------


def load_for_chat(
    folder: Path, device: str, dtype: torch.dtype
) -> tuple[Decoder, ChatFormat, list[str]]:
    """Return a checkpoint and the format that it is taught, and the tokens that both lacked.

    Raises `ValueError` for a tokenizer that is not the checkpoint's, or cannot write the tags.
    """
    tokenizer = Tokenizer.from_folder(folder)
    model = checkpoint.load(folder, device=device, dtype=dtype)
    checkpoint.check_tokenizer(tokenizer, model.config)
    check_tags(tokenizer)
    format, added = taught_format(folder, tokenizer)
    vocab_size = max(model.config.vocab_size, tokenizer.vocab_size)
    return model.with_vocab(vocab_size, format.ends), format, added


def check_trained(settings: SftSettings, added: Sequence[str]) -> None:
    """Raise where factors are to be trained beside tokens that are added.

    All new rows stand at one mean, and factors are of the blocks' matrices alone: the tokens would
    stay alike.
    """
    if settings.lora.lora_rank and added:
        raise ValueError(
            f"lora_rank: {settings.lora.lora_rank}, but the checkpoint lacks {', '.join(added)}, "
            "whose embeddings no factor trains; tune all weights first (--lora-rank 0), or take a "
            "checkpoint that has a chat format"
        )


def write_tuned(
    model: Decoder, trained: nn.Module, format: ChatFormat, added: Sequence[str],
    settings: SftSettings, base: Path, run: StageRun,
) -> None:  # fmt: skip
    """Write the tuned checkpoint, or the adapter that makes it of its base.

    A checkpoint that has its format keeps the files that say so.
    """
    has_format = not added and bool(read_chat_templates(base))
    tokenizer = None if has_format else format.tokenizer
    chat: dict[str, Any] = {"like": base, "tokenizer": tokenizer, "toggle": format.toggle}
    if settings.saved == "adapter":
        factors = {name: (own.down, own.up) for name, own in by_module(trained).items()}
        lora = partial(write_adapter, base=base, alpha=settings.lora.lora_alpha)
        fsdp.write_whole(trained, run.peers, partial(lora, run.folder, factors))
        run.peers.on_first(partial(checkpoint.write_tokenizer, run.folder, model.config, **chat))
        return
    if settings.lora.lora_rank:
        merge(model)
    write = partial(checkpoint.write, model, run.folder, served_as=base, **chat)
    fsdp.write_whole(model, run.peers, write)


def over_modes(losses: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of the held-out losses by mode, in which long traces count no more."""
    return {"loss": sum(losses.values()) / max(1, len(losses))}


def add_gradient(
    model: Decoder,
    batches: Sequence[Batch],
    dtype: str,
    peers: Peers = ALONE,
    check: Callable[[], None] = lambda: None,
    *,
    average: Average = "token",
) -> dict[str, float]:
    """Add the gradient of a step's loss, a mean over all processes; return it and the targets.

    `batches` are this process's, however they are cut; `check` is called before each, and what it
    raises ends the step.
    """
    weights = [target_weights(batch.cu_seqlens, batch.positions, average) for batch in batches]
    total_weight = sum(peers.gather(sum(float(weight.sum()) for weight in weights)))
    num_targets = sum(peers.gather(sum(len(batch.targets) for batch in batches)))
    total = 0.0
    for batch, weight in zip(batches, weights, strict=True):
        check()
        logprobs = packed_logprobs(model, *batch.arrays, dtype=dtype)
        loss = -(logprobs * torch.from_numpy(weight).to(logprobs)).sum() / total_weight
        loss.backward()
        total += loss.item()
    return {"loss": sum(peers.gather(total)), "targets": float(num_targets)}


def target_weights(
    cu_seqlens: Int64[np.ndarray, " documents_plus_1"],
    positions: Int64[np.ndarray, " tokens"],
    average: Average,
) -> Float64[np.ndarray, " tokens"]:
    """Return what every target counts: 1, or 1 / the number of its conversation's.

    Their sum is the number of targets, or of conversations.
    """
    if average == "token":
        return np.ones(len(positions))
    documents = np.searchsorted(cu_seqlens, positions, side="right")
    return 1 / np.bincount(documents)[documents]


@torch.no_grad()
def heldout_losses(
    model: Decoder,
    examples: Sequence[Example],
    row_len: int,
    micro_rows: int,
    dtype: str,
    peers: Peers = ALONE,
) -> dict[str, float]:
    """Return the mean loss of the held-out answers by mode, nats a token."""
    figures = {}
    for mode in MODES:
        own = [example for example in examples if example.mode == mode]
        rows = pack([len(example.token_ids) for example in own], row_len)
        sums = {"loss": 0.0, "targets": 0.0}
        for at, counts in peers.rounds(range(0, len(rows), micro_rows)):
            batch = batch_examples(own, rows[at : at + micro_rows], row_len)
            loss = -packed_logprobs(model, *batch.arrays, dtype=dtype).sum().item()
            if counts:
                sums = {
                    "loss": sums["loss"] + loss,
                    "targets": sums["targets"] + len(batch.targets),
                }
        sums = peers.total(sums)
        if sums["targets"]:
            figures[f"loss_{mode}"] = sums["loss"] / sums["targets"]
    return figures
