"""Stages killed at every operation on files and within every write, and run again: the same result?

A stage of a few lines, and a tiny `distill` with its best weights (by one process and by two),
`sft`, `rl`, `bld` and `export` are each made once; then again and again, killed (SIGKILL's way, no
clean-up) before the n-th operation or with half of the n-th written file there, and run a second
time. That run has to end well, in the same hash, and leave nothing beside its output.

    python benchmarks/crash_sweep.py [--stride 10] [--only distill rl]
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torch
from crashes import KILLED, Ending, forked, sweep, sweep_toy

from fretsaw.cli import main as fretsaw
from fretsaw.stage.artifact import hash_path
from fretsaw.stage.peers import Peers

ON = ("--device", "cpu", "--dtype", "fp32")
ROWS = ("--seq-len", "64", "--batch-tokens", "512")
STEPS = (*ROWS, "--micro-batch-tokens", "256", "--heldout-tokens", "512")
TUNING = ("--source", "world", "--seq-len", "256", "--batch-tokens", "1024", "--epochs", "1")


def prepare(data: Path) -> None:
    """Make what the stages read: a corpus, a small parent, its ranking, a chat model."""
    corpus, parent = data / "corpus", data / "parent"
    size = ("--hidden-size", "32", "--num-attention-heads", "4", "--num-key-value-heads", "4")
    size += ("--num-hidden-layers", "2", "--intermediate-size", "64")
    text = ("--source", "world", "--max-tokens", "20000", "--heldout-tokens", "4096")
    plain = ("--tokens", "1024", "--seq-len", "64", *ON)
    commands = [
        ["corpus", *text, "--vocab-size", "300", "--seq-len", "64", "--out", corpus],
        ["pretrain", "--corpus", corpus, *size, *STEPS, "--tokens", "5120", *ON, "--out", parent],
        ["rank", "--parent", parent, "--corpus", corpus, *plain, "--out", data / "ranking"],
        ["sft", "--model", parent, *TUNING, "--num-rows", "20", *ON, "--out", data / "chat"],
    ]
    for command in commands:
        assert fretsaw(list(map(str, command))) == 0


def commands_in(data: Path) -> dict[str, list[str]]:
    """Return the command of each stage, without --out."""
    parent, corpus = f"{data / 'parent'}", f"{data / 'corpus'}"
    always = ("--save-every-s", "0")
    rollouts = ("--num-rollouts", "2", "--updates-per-rollout", "2", "--prompts-per-rollout", "4")
    rollouts += ("--group-size", "2", "--max-tokens", "8", "--heldout-problems", "2")
    few = ("--tokens", "1024", "--repair-tokens", "512", "--heldout-tokens", "512")
    rollouts += ("--task", "word_problems:steps=1", "--needs-signal", "False")
    both = ["--parent", parent, "--corpus", corpus]
    distill = ["distill", "--child", parent, *both, *STEPS, *ON, "--tokens", "1536"]
    distill += ["--heldout-every", "1", "--learning-rate", "1e-3", *always]
    ranked = [*both, "--ranking", f"{data / 'ranking'}"]
    return {
        "distill": distill,
        "distill, 2 processes": distill,
        "sft": ["sft", "--model", parent, *TUNING, "--num-rows", "40", *always, *ON],
        "rl": ["rl", "--model", f"{data / 'chat'}", *rollouts, *always, *ON],
        "bld": ["bld", *ranked, *ROWS, *few, "--ffn-percents", "50", *ON],
        "export": ["export", parent],
    }


def sweep_command(
    command: list[str], root: Path, size: int, stride: int, expected: Path
) -> Iterator[Ending]:
    """Sweep a command, which is first let end as it likes."""

    def make(out: Path, peers: Peers) -> str:
        code = fretsaw([*command, "--out", str(out)])
        is_there = command[0] == "export" and out.exists()  # which is refused, whole or not
        assert code == 0 or is_there, f"exit code {code}"
        return hash_path(out)

    codes = forked(lambda: expected.write_text(make(root / "out", Peers())), size)
    assert not any(codes), f"exit codes {codes} without a kill; see the log"
    yield from sweep(make, root, size, stride, expected.read_text())


def print_row(name: str, endings: Iterator[Ending]) -> bool:
    """Print a row of the table; return whether all second runs ended as they should."""
    started, last, failed, num_kills = time.monotonic(), {}, [], 0
    for how, number, codes, ends in endings:
        last[how] = number
        num_kills += KILLED in codes
        if any(ends):
            failed.append(f"{how} {number}")
    seconds = time.monotonic() - started
    print(
        f"{name:<22}{last['before']:>12}{last['within']:>8}{num_kills:>8}{len(failed):>8}"
        f"{seconds:>8.0f}  {'; '.join(failed)}",
        flush=True,
    )
    return not failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="fretsaw-crashes-"))
    table = os.fdopen(os.dup(1), "w")  # what the stages say goes to a file
    for stream in (1, 2):
        os.dup2(os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout = table
    assert forked(lambda: prepare(folder)) == [0]
    print(f"{'':22}{'operations':>12}{'writes':>8}{'kills':>8}{'failed':>8}{'s':>8}", flush=True)
    commands = commands_in(folder)
    names = ["a stage of a few lines", *commands]
    is_well = True
    for name in (one for one in names if not options.only or one in options.only):
        root = folder / name.replace(" ", "-")
        root.mkdir()
        if name in commands:
            size = 2 if "2 processes" in name else 1
            expected = folder / f"{root.name}.txt"
            endings = sweep_command(commands[name], root, size, options.stride, expected)
        else:
            endings = sweep_toy(root, 1, options.stride)
        is_well &= print_row(name, endings)
    print(f"{folder / 'log.txt'} has what the stages said" if not is_well else "all the same")
    if is_well:
        shutil.rmtree(folder)
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
