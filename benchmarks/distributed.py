"""Two processes against one: equal losses and gradients, resuming, a killed process, tokens/s.

    python benchmarks/distributed.py [--pairs 9] [--out distributed.json]

A small parent is trained on generated text and a child of unlike layers (one of them empty, widths
that two do not divide) is distilled from it, on CPUs over gloo with one thread a process. Every run
is a `fretsaw` command as a user would give it; the gradients are this script's own, under torchrun.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distributed import fsdp, mesh
from fretsaw.model.config import blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.stage.peers import Peers, end_process

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PYTHON = [sys.executable]
TORCHRUN = [*PYTHON, "-m", "fretsaw.distributed.torchrun", "--standalone", "--nproc-per-node", "2"]
FRETSAW = ["-m", "fretsaw"]
PLACE = ["--device", "cpu", "--dtype", "fp32"]
BLOCKS = (("gqa2", "ffn33"), ("attn_none", "ffn_none"), ("attn_linear", "ffn_linear")) * 2
NUM_STEPS, BATCH_TOKENS = 40, 1024


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL)


def prepare(folder: Path) -> None:
    """Make corpus, parent and child."""
    corpus, parent = str(folder / "corpus"), str(folder / "parent")
    text = ["--source", "world", "--max-tokens", "100000", "--vocab-size", "300"]
    run([*PYTHON, *FRETSAW, "corpus", *text, "--heldout-tokens", "8192", "--out", corpus, *PLACE])
    shape = ["--num-hidden-layers", "6", "--hidden-size", "64", "--intermediate-size", "128"]
    loop = ["--tokens", "40960", "--batch-tokens", "2048", "--micro-batch-tokens", "2048"]
    size = ["--seq-len", "64", "--heldout-tokens", "2048"]
    more = ["--corpus", corpus, "--out", parent, *PLACE]
    run([*PYTHON, *FRETSAW, "pretrain", *shape, *loop, *size, *more])
    child = Decoder(
        replace(checkpoint.read_config(folder / "parent"), blocks=blocks_from_names(BLOCKS))
    )
    child.init_weights(1)
    checkpoint.save(child, folder / "child", like=folder / "parent")


def healing(folder: Path, out: Path, optimizer: str, *more: str) -> list[str]:
    names = {name: str(folder / name) for name in ("child", "parent", "corpus")}
    inputs = [word for name, path in names.items() for word in (f"--{name}", path)]
    loop = ["--tokens", str(NUM_STEPS * BATCH_TOKENS), "--batch-tokens", str(BATCH_TOKENS)]
    size = ["--micro-batch-tokens", "256", "--seq-len", "64", "--heldout-tokens", "2048"]
    other = ["--optimizer", optimizer, "--save-every-s", "0.5", "--out", str(out), *PLACE]
    return [*FRETSAW, "distill", *inputs, *loop, *size, *other, *more]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def apart(one: Path, two: Path) -> dict[str, float]:
    """Return how far two runs are apart, relative: the worst of all steps' losses, and weights."""
    names = ("kl", "cosine", "heldout_kl", "heldout_loss")
    pairs = [*zip(rows_of(one), rows_of(two), strict=True)]
    losses = [abs(a[n] - b[n]) / abs(a[n]) for a, b in pairs for n in names if n in a]
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    error = sum((weights[0][n] - weights[1][n]).square().sum().item() for n in weights[0])
    norm = sum(value.square().sum().item() for value in weights[0].values())
    return {"steps": len(pairs), "loss": max(losses), "weights": (error / norm) ** 0.5}


# --- gradients ------------------------------------------------------------------------------------


def gradients(folder: Path, out: Path) -> None:
    """Write the whole gradient of one batch, in float64 and float32."""
    peers = Peers.from_environment()
    if peers.size > 1:
        mesh.join(peers, "cpu")
    ids = torch.randint(300, (8, 65), generator=torch.Generator().manual_seed(0))
    own = ids[peers.share(8, "rows")]
    found = {}
    for dtype in (torch.float64, torch.float32):
        child = checkpoint.load(folder / "child").to(dtype)
        if peers.size > 1:
            fsdp.shard(child, peers, "cpu")
        logits = F.linear(child.hidden_states(own[:, :-1]), child.head_weight).flatten(0, 1)
        loss = F.cross_entropy(logits, own[:, 1:].flatten(), reduction="sum") / ids[:, 1:].numel()
        loss.backward()
        parts = [p.grad for p in child.parameters() if p.grad is not None]
        wholes = [p.full_tensor() if isinstance(p, DTensor) else p for p in parts]
        found[str(dtype)] = torch.cat([whole.flatten() for whole in wholes])
    if peers.rank == 0:
        torch.save(found, out)
    if peers.size > 1:
        mesh.leave()


def compare_gradients(folder: Path) -> dict[str, float]:
    """Return the largest difference as a share of the largest gradient, by dtype."""
    script = [__file__, "--gradients-of", str(folder), "--out"]
    for name, launcher in (("one.pt", PYTHON), ("two.pt", TORCHRUN)):
        run([*launcher, *script, str(folder / name)])
    one, two = (torch.load(folder / name, weights_only=True) for name in ("one.pt", "two.pt"))
    return {key: ((one[key] - two[key]).abs().max() / one[key].abs().max()).item() for key in one}


# --- resuming and killing -------------------------------------------------------------------------


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    path = out.with_name(f".{out.name}.partial") / "metrics.jsonl"
    while process.poll() is None and not (path.is_file() and len(rows_of(path.parent)) >= step):
        time.sleep(0.02)


def stop_after(command: list[str], out: Path, step: int) -> int:
    """Run until `step` steps are done, ask to stop as a scheduler does; return the exit code."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for_step(out, step, process)
    process.send_signal(signal.SIGTERM)
    return process.wait()


def kill_one(command: list[str], out: Path, step: int) -> tuple[float, str]:
    """Kill a process of two after `step` steps; return the seconds to the end and what was said."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, step, process)
    worker = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()[-1]
    os.kill(int(worker), signal.SIGKILL)
    killed_at = time.monotonic()
    _, errors = process.communicate()
    found = re.search(r"fretsaw: (rank .*)", errors)
    return time.monotonic() - killed_at, found[1] if found else errors[-500:]


# --- speed ----------------------------------------------------------------------------------------


def tokens_per_s(folder: Path, launcher: list[str]) -> float:
    """Return the median over the steps of a short run on the parent's own shape, uncompressed."""
    out = folder / "speed"
    inputs = ["--child", str(folder / "parent"), "--corpus", str(folder / "corpus")]
    objective = ["--kl-weight", "0", "--cosine-weight", "0", "--lm-weight", "1"]
    loop = ["--tokens", "81920", "--batch-tokens", "8192", "--micro-batch-tokens", "4096"]
    size = ["--seq-len", "64", "--heldout-tokens", "64", "--heldout-every", "100"]
    more = ["--save-every-s", "100", "--out", str(out), *PLACE]
    run([*launcher, *FRETSAW, "distill", *inputs, *objective, *loop, *size, *more])
    rates = [row["tokens_per_s"] for row in rows_of(out)[1:-1]]
    shutil.rmtree(out)
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="interleaved pairs of runs for speed")
    parser.add_argument("--out", type=Path, default=Path("distributed.json"))
    parser.add_argument("--gradients-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.gradients_of:
        return gradients(options.gradients_of, options.out)
    folder = Path(tempfile.mkdtemp(prefix="fretsaw-distributed-"))
    prepare(folder)
    found: dict = {"cpu": platform.processor(), "torch": torch.__version__}

    found["gradients"] = compare_gradients(folder)
    for dtype, worst in found["gradients"].items():
        print(f"gradient, {dtype}: {worst:.1e} of the largest apart", flush=True)
    for optimizer in ("adamw", "muon"):
        one, two = (folder / f"{optimizer}-{name}" for name in ("one", "two"))
        run([*PYTHON, *healing(folder, one, optimizer)])
        run([*TORCHRUN, *healing(folder, two, optimizer)])
        found[optimizer] = apart(one, two)
        print(f"{optimizer}, 1 and 2 processes: {words(found[optimizer])}", flush=True)

        resumed = folder / f"{optimizer}-resumed"
        command = healing(folder, resumed, optimizer)
        codes = [stop_after([*TORCHRUN, *command], resumed, NUM_STEPS // 4)]
        codes.append(stop_after([*PYTHON, *command], resumed, NUM_STEPS // 2))
        run([*TORCHRUN, *command])
        found[f"{optimizer} resumed"] = {"exit_codes": codes, **apart(one, resumed)}
        result = words(found[f"{optimizer} resumed"])
        print(f"{optimizer}, 2 -> 1 -> 2 (exits {codes}) and 1 at one go: {result}", flush=True)

    killed = folder / "killed"
    command = [*TORCHRUN, *healing(folder, killed, "adamw")]
    seconds, said = kill_one(command, killed, NUM_STEPS // 4)
    run(command)
    found["killed"] = {"seconds": seconds, "said": said, **apart(folder / "adamw-one", killed)}
    print(f"a killed process: the job ended after {seconds:.1f} s and said: {said}")
    print(f"and went on by the same command: {words(found['killed'])}", flush=True)

    pairs = [
        (tokens_per_s(folder, PYTHON), tokens_per_s(folder, TORCHRUN)) for _ in range(options.pairs)
    ]
    ratios = [two / one for one, two in pairs]
    found["tokens_per_s"] = pairs
    middle = [statistics.median(side) for side in zip(*pairs, strict=True)]
    print(
        f"tokens/s with 1 and 2 processes, one thread each: {middle[0]:,.0f} and {middle[1]:,.0f}; "
        f"ratio {statistics.median(ratios):.2f} (median of {len(ratios)} interleaved pairs, "
        f"{min(ratios):.2f} to {max(ratios):.2f})"
    )
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    shutil.rmtree(folder)


def words(result: dict) -> str:
    return (
        f"losses {result['loss']:.1e} apart over {result['steps']} steps, "
        f"weights {result['weights']:.1e}"
    )


if __name__ == "__main__":
    end_process(main)
