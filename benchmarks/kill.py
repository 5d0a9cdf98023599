"""Kill the tiny recipe at random moments; the same command must end in the same weights.

    python benchmarks/kill.py [--kills 5] [--seed 0]

One run is left alone; another is killed (SIGKILL, the whole process group) at random moments and
started again each time. The reinforced child is compared by the hash of its weights. Measured costs
decide the architecture, so the second run is given the first one's cost artifact.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = "1.5x-decode/rl/model.safetensors"
SMALL = {
    "corpus.max_tokens": 120_000,
    "pretrain.train.tokens": 120_000,
    "pretrain.train.save_every_s": 2.0,
    "1.5x-decode/distill.train.tokens": 40_960,
    "1.5x-decode/distill.train.save_every_s": 2.0,
    "1.5x-decode/eval.num_problems": 20,
    "1.5x-decode/sft.save_every_s": 1.0,
    "1.5x-decode/sft-eval.num_problems": 20,
    "1.5x-decode/rl.task": "word_problems:steps=1",
    "1.5x-decode/rl.updates_per_rollout": 2,
    "1.5x-decode/rl.save_every_s": 1.0,
    "1.5x-decode/rl-eval.num_problems": 20,
}


def command(out: Path) -> list[str]:
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    run = ["run", "tiny", "--fast", "--dtype", "fp32", "--out", str(out)]
    return [sys.executable, "-m", "fretsaw", *run, *settings]


def weights_hash(out: Path) -> str:
    return hashlib.sha256((out / CHILD).read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chooser = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="fretsaw-kill-"))
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    subprocess.run(command(whole), check=True)
    seconds = time.monotonic() - started
    print(f"left alone: {seconds:.0f} s, child {weights_hash(whole)[:16]}", flush=True)

    num_kills = 0
    while True:
        process = subprocess.Popen(
            command(killed),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        limit = chooser.uniform(0.05, 0.35) * seconds if num_kills < options.kills else None
        at = time.monotonic()
        while process.poll() is None and (limit is None or time.monotonic() - at < limit):
            if (killed / "run.json").is_file() and not (killed / "cost").is_dir():
                shutil.copytree(whole / "cost", killed / "cost")
            time.sleep(0.02)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        num_kills += 1
        stages = [p.parent.name for p in killed.rglob("manifest.json")]
        print(f"kill {num_kills} after {time.monotonic() - at:.1f} s, {len(stages)} stages done")
    same = weights_hash(whole) == weights_hash(killed)
    print(
        f"{num_kills} kills, child {weights_hash(killed)[:16]}: {'same' if same else 'DIFFERENT'}"
    )
    shutil.rmtree(folder)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
