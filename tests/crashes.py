"""A stage that is killed at its n-th operation on files, or within its n-th write, and run again.

Run as a program, which has computed nothing before it forks: `crashes.py OUT SIZE STRIDE` kills
one of SIZE processes at every STRIDE-th operation, then within every STRIDE-th write, and prints
for each how the processes end, and those of the run that follows.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch._dynamo  # which an optimizer imports: here once, rather than in every child
import torch.distributed as dist
from torch import nn

from fretsaw.stage import artifact, whole
from fretsaw.stage.execute import StageRun, execute
from fretsaw.stage.peers import ALONE, Peers
from fretsaw.training.best_weights import BestWeights
from fretsaw.training.state import TrainingState

KILLED = 137
OPERATIONS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
os.fsync = lambda fd: None  # a kill, unlike a power cut, takes nothing of what was written
Ending = tuple[str, int, list[int], list[int]]  # how and when killed, exit codes of both runs
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
    run.peers.on_first(lambda: whole.write_json(run.folder / "weights.json", weights))
    return state.scalars


def make(out: Path, text: Path, peers: Peers = ALONE) -> str:
    if peers.size > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    request = artifact.StageRequest.of("learn", Settings(), {"text": text}, 0)
    with contextlib.redirect_stderr(io.StringIO()):
        execute(learn, request, Settings(), out, device="cpu", dtype="fp32", peers=peers)
    return peers.on_first(lambda: artifact.artifact_hash(artifact.read_manifest(out)))


def kill_at(number: int, root: Path, *, is_within: bool) -> None:
    """End this process as a kill does: before an operation on files, or within a write.

    Within a write, half of the file is there: it is cut at the operation that follows. A file that
    is added to is left out, for its last line alone could be cut.
    """
    counted = itertools.count()
    written: str | None = None  # the file of that number

    def hook(event: str, arguments: tuple) -> None:
        nonlocal written
        flags = (arguments[2] or 0) if event == "open" else 0
        is_write = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not is_write and event not in OPERATIONS:
            return
        if written is not None:
            path, written = written, None  # to cut it is an operation, too
            os.truncate(path, os.path.getsize(path) // 2)
            os._exit(KILLED)
        if not is_within and next(counted) == number:
            os._exit(KILLED)
        is_new = is_write and isinstance(arguments[0], str) and not flags & os.O_APPEND
        if is_within and is_new and arguments[0].startswith(str(root)) and next(counted) == number:
            written = arguments[0]

    sys.addaudithook(hook)


def forked(do: Callable[[], object], size: int = 1) -> list[int]:
    """Return the exit codes of so many processes that do it together, as torchrun starts them.

    Once one has failed the others are asked to end.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children: dict[int, int] = {}
    for rank in range(size):
        if child := os.fork():
            children[child] = rank
            continue
        code = 1
        try:
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= where | of_rank
            do()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"rank {rank}: {error!r}\n")
            sys.stderr.flush()
        finally:
            os._exit(code)
    codes = [0] * size
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = code = os.waitstatus_to_exitcode(status)
        for other in children if code else ():
            os.kill(other, signal.SIGTERM)
    return codes


def is_half_a_holder(path: Path) -> bool:
    """Whether a file says nothing yet of who holds what; such a one is cleared half a minute on."""
    if path.suffix != ".holding":
        return False
    try:
        json.loads(path.read_text())
    except ValueError:
        return True
    return False


def sweep(
    make: Callable[[Path, Peers], str],
    root: Path,
    size: int,
    stride: int,
    expected: str,
    before: Path | None = None,
) -> Iterator[Ending]:
    """Make `root/out` again and again, killed ever later; then make it to its end.

    `before` is what stands there at first. The second run has to end in what is `expected`, and
    leave nothing beside it.
    """
    out = root / "out"
    stands = {path.name for path in root.iterdir()} | {"out"}

    def again() -> None:
        peers = Peers.from_environment()
        assert make(out, peers) == expected, "another result"
        hidden = [str(path.relative_to(root)) for path in out.rglob(".*")]
        beside = {path.name for path in root.iterdir() if not is_half_a_holder(path)}
        left = sorted(beside - stands) + hidden
        assert peers.rank or not left, f"left behind: {left}"

    for is_within in (False, True):
        every = max(1, stride // 4) if is_within else stride  # there are fewer writes
        for number in range(0, 100_000, every):
            victim = number // every % size
            at = number // 8 if victim else number  # others than the first write little
            for path in root.iterdir():
                if path.name not in stands - {"out"}:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if before is not None:
                shutil.copytree(before, out)

            def crash(victim: int = victim, at: int = at, is_within: bool = is_within) -> None:
                peers = Peers.from_environment()
                if peers.rank == victim:
                    kill_at(at, root, is_within=is_within)
                make(out, peers)

            codes = forked(crash, size)
            yield "within" if is_within else "before", number, codes, forked(again, size)
            if KILLED not in codes and victim == 0:
                break


def sweep_toy(root: Path, size: int, stride: int) -> Iterator[Ending]:
    """Sweep the loop above, where a finished folder is stale, and replaced."""
    text, expected = root / "text", root / "expected.txt"
    text.write_text("before")
    forked(lambda: make(root / "before", text))
    text.write_text("after!")
    forked(lambda: expected.write_text(make(root / "whole", text)))

    def again(out: Path, peers: Peers) -> str:
        return make(out, text, peers)

    yield from sweep(again, root, size, stride, expected.read_text(), root / "before")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for how, number, codes, ends in sweep_toy(Path(sys.argv[1]), *map(int, sys.argv[2:])):
        print(how, number, *codes, *ends, flush=True)
