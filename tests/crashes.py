"""A stage that is killed at its n-th operation on files, and run again.

Run as a program, which has done nothing with torch before it forks: `crashes.py OUT SIZE STRIDE`
kills one of SIZE processes at every STRIDE-th operation and prints, for each, how the run that
follows ends.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fretsaw.distill.best_weights import BestWeights
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun, execute
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.training.state import TrainingState

KILLED = 137
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
LOSSES = [3.0, 2.0, 2.5, 1.0, 4.0]  # held out, after each step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    size: int = 3


def learn(settings: Settings, inputs: object, run: StageRun) -> dict[str, float]:
    """A loop with all that a long stage keeps: states, the best weights, metrics, an output."""
    model = nn.Linear(settings.size, 1, bias=False)
    nn.init.ones_(model.weight)
    state = TrainingState(
        run.resume_folder, model, [torch.optim.AdamW(model.parameters())], peers=run.peers
    )
    best = BestWeights(state, "loss", True)
    if not state.resume():
        best.begin({"loss": 9.0})
        state.save()
    run.progress.rewind(state.step)
    run.progress.start("learning", len(LOSSES), step=state.step)
    while state.step < len(LOSSES):
        model.weight.grad = torch.full_like(model.weight, state.step + 1.0)
        state.optimizers[0].step()
        state.step += 1
        best.consider({"loss": LOSSES[state.step - 1]})
        # An older state than the best weights is part of what is tried.
        save = state.save if state.step % 2 else None
        run.step(state.step, {"loss": LOSSES[state.step - 1]}, save=save)
    best.restore()
    weights = model.weight.tolist()
    run.peers.on_first(lambda: artifact.write_json(run.folder / "weights.json", weights))
    return state.scalars


def make(out: Path, text: Path, peers: Peers = ALONE) -> str:
    request = artifact.StageRequest.of("learn", Settings(), {"text": text}, 0)
    with contextlib.redirect_stderr(io.StringIO()):
        execute(learn, request, Settings(), out, device="cpu", dtype="fp32", peers=peers)
    return peers.on_first(lambda: artifact.artifact_hash(artifact.read_manifest(out)))


def kill_at(number: int) -> None:
    """End this process, as a kill does, before its operation of that number."""
    counted = itertools.count()

    def hook(event: str, arguments: tuple) -> None:
        is_write = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (is_write or event in OPERATIONS) and next(counted) == number:
            os._exit(KILLED)

    sys.addaudithook(hook)


def forked(do: Callable[[], object], size: int, rendezvous: Path) -> list[int]:
    """Return the exit codes of so many processes that do it together."""
    rendezvous.unlink(missing_ok=True)
    children = []
    for rank in range(size):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
            if size > 1:
                where = f"file://{rendezvous}"
                dist.init_process_group("gloo", where, rank=rank, world_size=size)
            do()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"rank {rank}: {error!r}\n")
        finally:
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def sweep(root: Path, size: int, stride: int, first: int = 0) -> None:
    torch.set_num_threads(1)
    text, expected = root / "text", root / "expected.txt"
    text.write_text("before")
    forked(lambda: make(root / "before", text), 1, root / "meet")
    text.write_text("after!")  # so that the finished folder is stale, and replaced
    forked(lambda: expected.write_text(make(root / "whole", text)), 1, root / "meet")
    for number in range(first, 10_000, stride):
        victim, out, partial = number // stride % size, root / "out", root / ".out.partial"
        at = number // 8 if victim else number  # others than the first write little
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(root / "before", out)

        def crash(out: Path = out, victim: int = victim, at: int = at) -> None:
            peers = Peers.from_environment()
            if peers.rank == victim:
                kill_at(at)
            make(out, text, peers)

        def again(out: Path = out) -> None:
            peers = Peers.from_environment()
            found = make(out, text, peers)
            assert found == expected.read_text(), "another result"
            left = sorted(p.name for p in [*root.iterdir(), *out.iterdir()] if p.is_dir())
            assert peers.rank or left == ["before", "out", "whole"], f"left behind: {left}"

        codes = forked(crash, size, root / "meet")
        ends = forked(again, size, root / "meet")
        print(number, *codes, *ends, flush=True)
        if KILLED not in codes and victim == 0:
            break


if __name__ == "__main__":
    sweep(Path(sys.argv[1]), *map(int, sys.argv[2:]))
