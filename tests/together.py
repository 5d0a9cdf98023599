"""What one process and two do alike; run by torchrun, it does the part of two (tests/distributed).

torchrun --nproc-per-node 2 tests/together.py PART TINY OUT
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from support import stage_run, stopped_at
from torch import Tensor
from torch.distributed.tensor import DTensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.distill.objective import Objective, losses
from fretsaw.distill.settings import TrainSettings
from fretsaw.distill.train import train
from fretsaw.distributed import fsdp, mesh
from fretsaw.model.config import blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import tune
from fretsaw.stage.execute import Interrupted, StageRun
from fretsaw.stage.peers import ALONE, Peers, end_process
from fretsaw.training.blocks import prepare_blocks
from fretsaw.training.settings import LoraSettings, UpdateSettings

UPDATES = {
    "adamw": {"update": UpdateSettings()},
    "muon": {"update": UpdateSettings(optimizer="muon")},
    "lora": {"lora": LoraSettings(lora_rank=4)},
}
# Layers of different shapes, one of them empty, and widths that two do not divide.
BLOCKS = (
    ("gqa2", "ffn33"),
    ("attn_none", "ffn_none"),
    ("attn_linear", "ffn_linear"),
    ("attn_none", "ffn64"),
)
SETTINGS = TrainSettings(
    tokens=512 * 6,
    batch_tokens=512,
    micro_batch_tokens=128,
    seq_len=64,
    heldout_tokens=320,  # five rows, so three rounds of two rows: they do not divide either
    heldout_every=2,
)
TUNING = SftSettings(
    source="world",
    num_rows=60,
    seq_len=256,
    batch_tokens=1024,
    micro_batch_tokens=256,
    heldout_share=0.3,
    heldout_every=2,
    epochs=1,
)


TUNING_FACTORS = replace(
    TUNING, average="sequence", lora=LoraSettings(lora_rank=4), saved="adapter", keep_best=True
)


def child(tiny: Path) -> Decoder:
    config = checkpoint.read_config(tiny / "parent")
    decoder = Decoder(replace(config, blocks=blocks_from_names(BLOCKS)))
    decoder.init_weights(3)
    return decoder


def gradients(tiny: Path, peers: Peers) -> dict[str, Tensor]:
    """Return the whole gradient of a double-precision loss, and of distillation in float32."""
    rows = loader.batch(
        loader.read_tokens(tiny / "corpus/train.npy"), seed=0, step=0, batch_size=8, seq_len=64
    )
    window = torch.from_numpy(rows[peers.share(8, "rows")])
    found = {}
    for kind in ("float64", "float32"):
        student, teacher = child(tiny), checkpoint.load(tiny / "parent").requires_grad_(False)
        student = student.double() if kind == "float64" else student
        if peers.size > 1:
            fsdp.shard(student, peers, "cpu")
            fsdp.shard(teacher, peers, "cpu")
        if kind == "float64":
            states: list[Tensor] = []
            hidden = student.hidden_states(window[:, :-1], collect=states).flatten(0, 1)
            logits = F.linear(hidden, student.head_weight)
            loss = F.cross_entropy(logits, window[:, 1:].flatten(), reduction="sum")
            loss = loss + torch.stack([state.square().sum() for state in states]).sum()
        else:
            loss, _ = losses(student, teacher, window, Objective(1.0, 1.0, 1.0), "fp32")
        (loss / rows[:, 1:].size).backward()
        for name, parameter in student.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, f"{name} has no gradient"
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found[f"{kind}.{name}"] = whole
    return found


def heal(tiny: Path, out: Path, optimizer: str, peers: Peers, stop_at: int = 0) -> None:
    """Distill the child, until `stop_at` steps are done if given; only the last rank is told."""
    run = stage_run(out)
    run.peers = peers
    run.progress.folder = out if peers.rank == 0 else None

    def go(run: StageRun) -> None:
        student, teacher = child(tiny), checkpoint.load(tiny / "parent")
        settings = replace(SETTINGS, **UPDATES[optimizer])
        objective = Objective(kl=1.0, cosine=1.0, lm=0.5)
        train(student, teacher, tiny / "corpus", objective, settings, run, keep_best=True)
        fsdp.write_whole(
            student, peers, lambda: checkpoint.write(student, out, like=tiny / "parent")
        )

    if not stop_at:
        go(run)
    elif peers.rank == peers.size - 1:
        stopped_at(stop_at, run, go)
    else:
        try:
            go(run)
        except Interrupted:
            return
        raise AssertionError("the others stopped")


def first(tiny: Path, out: Path, peers: Peers = ALONE) -> None:
    """Gradients, whole runs, and runs that stop after two steps."""
    found = gradients(tiny, peers)
    if peers.rank == 0:
        torch.save(found, out / "gradients.pt")
    for optimizer in UPDATES:
        heal(tiny, out / optimizer, optimizer, peers)
        if peers.size > 1:
            heal(tiny, out / f"{optimizer}-stopped", optimizer, peers, stop_at=2)
    run = stage_run(out / "tuned")
    run.peers = peers
    run.progress.folder = run.folder if peers.rank == 0 else None
    tune(TUNING, {"model": tiny / "parent"}, run)
    peers.on_first(lambda: None)  # it is written
    factors = stage_run(out / "tuned-lora")
    factors.peers = peers
    factors.progress.folder = factors.folder if peers.rank == 0 else None
    tune(TUNING_FACTORS, {"model": out / "tuned"}, factors)


def last(tiny: Path, out: Path, peers: Peers) -> None:
    """Go on with the stopped runs to their end."""
    for optimizer in UPDATES:
        heal(tiny, out / f"{optimizer}-stopped", optimizer, peers)


def loss_and_gradients(tiny: Path, *, compile: bool, recompute: bool) -> list[Tensor]:
    """Return a loss of the child's first block and the gradients, in one process."""
    decoder = child(tiny)
    decoder.model.layers = decoder.model.layers[:1]
    prepare_blocks(decoder, compile=compile, recompute=recompute)
    window = torch.arange(2 * 33).view(2, 33) % 300
    loss, _ = losses(decoder, None, window, Objective(), "fp32")
    (loss / 64).backward()
    return [loss.detach(), *(p.grad for p in decoder.parameters() if p.grad is not None)]


def compiled(tiny: Path, out: Path, peers: Peers = ALONE) -> None:
    """Plain blocks, and compiled and recomputed ones."""
    found = [loss_and_gradients(tiny, compile=c, recompute=c) for c in (False, True)]
    torch.save(found, out / "compiled.pt")


def main() -> None:
    """Do a part in this process, beside those that torchrun started with it."""
    torch.set_num_threads(1)
    part = {"first": first, "last": last, "compiled": compiled}[sys.argv[1]]
    peers = Peers.from_environment()
    if peers.size > 1:
        mesh.join(peers, "cpu")
    part(Path(sys.argv[2]), Path(sys.argv[3]), peers)
    if peers.size > 1:
        mesh.leave()


if __name__ == "__main__":
    end_process(main)
