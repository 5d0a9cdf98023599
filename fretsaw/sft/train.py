"""Supervised fine-tuning on conversations of both modes: the loss stands on the answers alone."""

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fretsaw.chat.control_tokens import add_control_tokens
from fretsaw.chat.reasoning import MODES, Mode, check_tags
from fretsaw.chat.render import render
from fretsaw.chat.toggle import Toggle, toggle_of
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader, world
from fretsaw.data.pack import Batch, batch_of, pack
from fretsaw.data.records import Record, read_records
from fretsaw.distributed import fsdp
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params
from fretsaw.sft.settings import MAX_ROW, SftSettings
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.stage.progress import say
from fretsaw.training.losses import packed_logprobs
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.state import TrainingState

STATE_BYTES_PER_PARAMETER = 12  # weights and two moments in float32


@dataclass(frozen=True)
class Example:
    """A conversation as token ids, and which of them are to be learnt."""

    token_ids: tuple[int, ...]
    is_target: tuple[bool, ...]
    mode: Mode


def tune(settings: SftSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Teach a checkpoint the chat format and the toggle, with the tokens it lacks added."""
    # --- set-up -----------------------------------------------------------------------------------
    tokenizer = Tokenizer.from_folder(inputs["model"])
    model = checkpoint.load(inputs["model"], device=run.load_device)
    checkpoint.check_tokenizer(tokenizer, model.config)
    check_tags(tokenizer)
    # A model that has no toggle yet is taught v1's.
    toggle: Toggle = "v1.5" if toggle_of(inputs["model"]) == "v1.5" else "v1"
    added = add_control_tokens(tokenizer)
    model = model.with_vocab(
        max(model.config.vocab_size, tokenizer.vocab_size), tokenizer.eos_token_ids
    )
    row_len = settings.seq_len or min(MAX_ROW, model.config.max_position_embeddings)
    if row_len > model.config.max_position_embeddings:
        raise ValueError(
            f"seq_len {row_len}: the model's context is {model.config.max_position_embeddings}; "
            "give at most that"
        )
    train_records, heldout_records = read(settings, inputs, run.seed)
    train, num_skipped = encode(train_records, tokenizer, row_len, settings.too_long, toggle)
    heldout, _ = encode(heldout_records, tokenizer, row_len, settings.too_long, toggle)
    if not train:
        raise ValueError("sft: no conversations are left; give more, or a longer seq_len")
    rows = pack([len(example.token_ids) for example in train], row_len)
    rows_per_step = min(len(rows), max(1, settings.batch_tokens // row_len))
    own_rows = run.peers.share(rows_per_step, f"batch_tokens {settings.batch_tokens}")
    micro_rows = max(1, settings.micro_batch_tokens // row_len)
    num_steps = -(-settings.epochs * len(rows) // rows_per_step)
    heldout_every = settings.heldout_every or max(1, num_steps // 10)
    artifact.require_disk(run.folder, 2 * STATE_BYTES_PER_PARAMETER * num_params(model.config))
    if run.peers.size > 1:
        fsdp.shard(model, run.peers, run.device)
    optimizers = build_optimizers(model, settings.update)
    state = TrainingState(run.resume_folder, model, optimizers, peers=run.peers)

    # --- state ------------------------------------------------------------------------------------
    if not state.resume():
        before = heldout_losses(model, heldout, row_len, micro_rows, run.dtype, run.peers)
        state.scalars = {f"before_{name}": value for name, value in before.items()}
        state.save()
    run.progress.rewind(state.step)
    run.progress.start("tuning", num_steps, step=state.step)

    # --- loop -------------------------------------------------------------------------------------
    while state.step < num_steps:
        started = time.monotonic()
        chosen = loader.order(len(rows), rows_per_step, seed=run.seed, step=state.step)
        own = chosen[own_rows]
        batches = [
            batch_examples(train, [rows[i] for i in own[at : at + micro_rows]], row_len)
            for at in range(0, len(own), micro_rows)
        ]
        num_targets = sum(run.peers.gather(sum(len(batch.targets) for batch in batches)))
        total = 0.0
        for batch in batches:
            loss = -packed_logprobs(model, *batch.arrays, dtype=run.dtype).sum() / num_targets
            loss.backward()
            total += loss.item()
        metrics = {"loss": sum(run.peers.gather(total)), "targets": float(num_targets)}
        metrics |= apply_gradients(
            model, optimizers, settings.update, step=state.step, num_steps=num_steps
        )
        state.step += 1
        is_last = state.step == num_steps
        if is_last or state.step % heldout_every == 0:
            figures = heldout_losses(model, heldout, row_len, micro_rows, run.dtype, run.peers)
            measured = {f"heldout_{name}": value for name, value in figures.items()}
            metrics |= measured
            state.scalars |= measured
        num_tokens = sum(len(train[i].token_ids) for row in chosen for i in rows[row])
        metrics["tokens_per_s"] = num_tokens / (time.monotonic() - started)
        run.step(state.step, metrics, save=state.save, save_every_s=settings.save_every_s)

    fsdp.write_whole(
        model,
        run.peers,
        lambda: checkpoint.write(
            model,
            run.folder,
            tokenizer=tokenizer,
            toggle=toggle,
            served_as=inputs["model"],
        ),
    )
    return {
        **state.scalars,
        "rows": len(train),
        "rows_skipped": num_skipped,
        "steps": num_steps,
        "tokens": settings.epochs * sum(len(example.token_ids) for example in train),
        "added_tokens": added,
    }


# --- examples -------------------------------------------------------------------------------------


def read(
    settings: SftSettings, inputs: Mapping[str, Path], seed: int
) -> tuple[list[Record], list[Record]]:
    """Return the conversations to tune on and those held out, by their questions."""
    if settings.source == "world":
        num_heldout = round(settings.heldout_share * settings.num_rows)
        sizes: dict[world.Split, int] = {"train": settings.num_rows, "heldout": num_heldout}
        limits = {"max_steps": settings.max_steps, "max_value": settings.max_value}
        train, heldout = (
            list(world.conversations(seed, split, size, **limits)) for split, size in sizes.items()
        )
        return train, heldout
    names = sorted((name for name in inputs if name.startswith("data")), key=lambda n: (len(n), n))
    if not names:
        raise ValueError("sft: no conversations; give --data FILES, or --source world")
    records = list(read_records([str(inputs[name]) for name in names]))
    heldout = [record for record in records if is_heldout(record, settings.heldout_share)]
    return [record for record in records if not is_heldout(record, settings.heldout_share)], heldout


def is_heldout(record: Record, share: float) -> bool:
    """Whether a conversation is held out: told by its question, so both modes of it go together."""
    question = next(m.content for m in record.messages if m.role == "user")
    return zlib.crc32(question.encode()) % 10_000 < 10_000 * share


def encode(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    row_len: int,
    too_long: str,
    toggle: Toggle = "v1",
) -> tuple[list[Example], int]:
    """Return the examples, and how many conversations were longer than a row and skipped."""
    examples, skipped = [], []
    for record in records:
        spans = render(tokenizer, record.messages, record.mode, toggle=toggle)
        token_ids = tuple(id for span in spans for id in span.token_ids)
        if len(token_ids) > row_len:
            if too_long == "refuse":
                raise ValueError(
                    f"{record.where}: {len(token_ids)} tokens, but a row holds {row_len}; give a "
                    "longer --seq-len, or leave such rows out with --too-long skip"
                )
            skipped.append(record.where)
            continue
        is_target = tuple(span.is_target for span in spans for _ in span.token_ids)
        examples.append(Example(token_ids, is_target, record.mode))
    if skipped:
        say(f"sft: {len(skipped)} conversations are longer than {row_len} tokens and are left out")
    return examples, len(skipped)


def batch_examples(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], row_len: int
) -> Batch:
    """Lay examples out in packed rows."""
    token_ids = [example.token_ids for example in examples]
    return batch_of(token_ids, [example.is_target for example in examples], rows, row_len)


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
