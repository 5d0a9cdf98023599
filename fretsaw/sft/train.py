"""Supervised fine-tuning on conversations of both modes: the loss stands on the answers alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fretsaw.chat.reasoning import MODES, check_tags
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.template import read_chat_templates
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
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
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.taught import taught_format, told
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.stage.progress import say
from fretsaw.training.losses import packed_logprobs
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.settings import LoraSettings
from fretsaw.training.state import TrainingState
from fretsaw.training.step_memory import kept_bytes


def tune(settings: SftSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Teach a checkpoint the chat format and the toggle, with the tokens it lacks added."""
    # --- set-up -----------------------------------------------------------------------------------
    model, format, added = load_for_chat(inputs["model"], run.load_device)
    say(f"sft: {told(format, added)}")
    row_len = row_length(settings, model.config)
    train, heldout, num_skipped = read_examples(settings, inputs, format, row_len, run.seed)
    rows = pack([len(example.token_ids) for example in train], row_len)
    rows_per_step = min(len(rows), max(1, settings.batch_tokens // row_len))
    own_rows = run.peers.share(rows_per_step, f"batch_tokens {settings.batch_tokens}")
    micro_rows = max(1, settings.micro_batch_tokens // row_len)
    num_steps = -(-settings.epochs * len(rows) // rows_per_step)
    heldout_every = settings.heldout_every or max(1, num_steps // 10)
    artifact.require_disk(run.folder, kept_bytes(model.config, settings.update, LoraSettings()))
    if run.peers.size > 1:
        fsdp.shard(model, run.peers, run.device)
    optimizers = build_optimizers(model, settings.update)
    state = TrainingState(run.resume_folder, model, optimizers, peers=run.peers)
    measure = partial(heldout_losses, model, heldout, row_len, micro_rows, run.dtype, run.peers)

    # --- state ------------------------------------------------------------------------------------
    if not state.resume():
        state.scalars = {f"before_{name}": value for name, value in measure().items()}
        state.save()
    run.progress.rewind(state.step)
    run.progress.start("tuning", num_steps, step=state.step)

    # --- loop -------------------------------------------------------------------------------------
    while state.step < num_steps:
        started = time.monotonic()
        chosen = loader.order(len(rows), rows_per_step, seed=run.seed, step=state.step)
        own = [rows[i] for i in chosen[own_rows]]
        batches = micro_batches(train, own, row_len, micro_rows)
        metrics = add_gradient(model, batches, run.dtype, run.peers, run.check_sooner)
        metrics |= apply_gradients(
            model, optimizers, settings.update, step=state.step, num_steps=num_steps
        )
        state.step += 1
        if state.step == num_steps or state.step % heldout_every == 0:
            measured = {f"heldout_{name}": value for name, value in measure().items()}
            metrics |= measured
            state.scalars |= measured
        num_tokens = sum(len(train[i].token_ids) for row in chosen for i in rows[row])
        metrics["tokens_per_s"] = num_tokens / (time.monotonic() - started)
        run.step(state.step, metrics, save=state.save, save_every_s=settings.save_every_s)

    # A checkpoint that has its format keeps the files that say so.
    has_format = not added and bool(read_chat_templates(inputs["model"]))
    tokenizer = None if has_format else format.tokenizer
    write = partial(checkpoint.write, like=inputs["model"], served_as=inputs["model"])
    write = partial(write, tokenizer=tokenizer, toggle=format.toggle)
    fsdp.write_whole(model, run.peers, partial(write, model, run.folder))
    return {
        **state.scalars,
        "rows": len(train),
        "rows_skipped": num_skipped,
        "steps": num_steps,
        "tokens": settings.epochs * sum(len(example.token_ids) for example in train),
        "added_tokens": added,
    }


# --- its steps ------------------------------------------------------------------------------------


def load_for_chat(folder: Path, device: str) -> tuple[Decoder, ChatFormat, list[str]]:
    """Return a checkpoint and the format that it is taught, and the tokens that both lacked.

    Raises `ValueError` for a tokenizer that is not the checkpoint's, or cannot write the tags.
    """
    tokenizer = Tokenizer.from_folder(folder)
    model = checkpoint.load(folder, device=device)
    checkpoint.check_tokenizer(tokenizer, model.config)
    check_tags(tokenizer)
    format, added = taught_format(folder, tokenizer)
    vocab_size = max(model.config.vocab_size, tokenizer.vocab_size)
    return model.with_vocab(vocab_size, format.ends), format, added


def add_gradient(
    model: Decoder,
    batches: Sequence[Batch],
    dtype: str,
    peers: Peers = ALONE,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Add the gradient of a step's loss, the mean over the targets of all processes; return both.

    `batches` are this process's, however they are cut; `check` is called before each, and what it
    raises ends the step.
    """
    num_targets = sum(peers.gather(sum(len(batch.targets) for batch in batches)))
    total = 0.0
    for batch in batches:
        check()
        loss = -packed_logprobs(model, *batch.arrays, dtype=dtype).sum() / num_targets
        loss.backward()
        total += loss.item()
    return {"loss": sum(peers.gather(total)), "targets": float(num_targets)}


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
