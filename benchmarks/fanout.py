"""Two Ray nodes on one machine against one worker: the same library, the same scores, bit for bit.

    python benchmarks/fanout.py [--layers 8] [--tokens 16384]

A parent of random weights is block-distilled and scored by one worker, by two processes, and by two
Ray nodes of one CPU each, with a worker killed on the way in both of the latter. Prints whether the
files are equal and how long each took. Needs Ray (pip install 'fretsaw[ray]'); times mean little on
fewer than two idle cores.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data.loader import write_tokens
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.puzzle.bld.bld import bld
from fretsaw.puzzle.library.ranking import rank
from fretsaw.puzzle.scores.score import score
from fretsaw.puzzle.settings import BldSettings, RankSettings, ScoreSettings, SpaceSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.hashes import hash_file
from fretsaw.stage.progress import Progress
from fretsaw.stage.workers import Workers

SEQ = 64
SPACE = SpaceSettings(ffn_percents=(50, 25))


def make_inputs(root: Path, layers: int, tokens: int) -> dict[str, Path]:
    """Write a parent of random weights, random text, and the ranking."""
    torch.manual_seed(0)
    config = ModelConfig.uniform(
        num_hidden_layers=layers,
        num_key_value_heads=4,
        intermediate_size=256,
        vocab_size=512,
        hidden_size=96,
        num_attention_heads=4,
        head_dim=24,
        tie_word_embeddings=True,
    )
    checkpoint.save(Decoder(config), root / "parent")
    (root / "corpus").mkdir()
    text = np.random.default_rng(0).integers(0, 512, 2 * tokens)
    write_tokens(root / "corpus" / "train.npy", text, 512)
    write_tokens(root / "corpus" / "heldout.npy", text[:8192], 512)
    inputs = {name: root / name for name in ("parent", "corpus")}
    rank(RankSettings(tokens=4096, seq_len=SEQ), inputs, run_in(root / "ranking"))
    return {**inputs, "ranking": root / "ranking"}


def run_in(folder: Path, workers: Workers = Workers(workers=1)) -> StageRun:  # noqa: B008
    folder.mkdir(parents=True, exist_ok=True)
    return StageRun(folder, 0, "cpu", "fp32", Progress(folder.name, folder), workers=workers)


def make(
    root: Path, inputs: dict[str, Path], tokens: int, workers: Workers, kill: Callable[[], bool]
) -> tuple[float, dict[str, str]]:
    """Distil and score into `root`; return the seconds and the hash of every file that results."""
    library = BldSettings(
        space=SPACE, tokens=tokens, batch_tokens=1024, seq_len=SEQ, repair_tokens=4096
    )
    scores = ScoreSettings(space=SPACE, repair_tokens=4096, tokens=4096, seq_len=SEQ, ahead=0)
    started, killed = time.perf_counter(), 0
    stages = (("bld", partial(bld, library)), ("score", partial(score, scores)))
    for name, stage in stages:
        run = run_in(root / name, workers)
        plain, is_killed = run.step, False

        def step(at: int, *arguments, plain=plain, **options) -> None:
            nonlocal is_killed
            is_killed = is_killed or (at > 2 and kill())
            plain(at, *arguments, **options)

        run.step = step  # type: ignore[method-assign]
        stage(inputs, run)
        killed += is_killed
        inputs = {**inputs, "library": root / "bld"}
    seconds = time.perf_counter() - started
    files = [root / "score" / "scores.json", root / "bld" / "bld.json"]
    files += sorted((root / "bld").glob("*.safetensors"))
    print(f"{root.name:<14}{seconds:8.1f} s  {killed} workers killed  {len(files)} files")
    return seconds, {str(file.relative_to(root)): hash_file(file) for file in files}


def kill_process() -> bool:
    """Kill a process of the pool; say whether there was one."""
    workers = multiprocessing.active_children()
    for worker in workers[:1]:
        worker.kill()
    return bool(workers)


def kill_ray_worker() -> bool:
    """Kill a process below this one in which Ray does a task; say whether there was one."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text()
            parents[int(folder.name)] = int(stat.rsplit(")", 1)[1].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::_do"):
                found.append(int(folder.name))
    for pid in found:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            os.kill(pid, signal.SIGKILL)
            return True
    return False


@contextlib.contextmanager
def two_nodes() -> Iterator[str]:
    """Start two Ray nodes of one CPU each; yield their address."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        cluster.add_node(**options)
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Two Ray nodes against one worker.")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16_384, help="of every layer's distillation")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = make_inputs(root, options.layers, options.tokens)
        _, one = make(root / "one", inputs, options.tokens, Workers(workers=1), lambda: False)
        two = Workers(workers=2)
        _, processes = make(root / "two", inputs, options.tokens, two, kill_process)
        with two_nodes() as address:
            nodes = Workers(ray=address)
            _, ray = make(root / "two-nodes", inputs, options.tokens, nodes, kill_ray_worker)
    for name, files in (("two processes", processes), ("two Ray nodes", ray)):
        different = [file for file in one if one[file] != files.get(file)]
        print(f"{name} against one worker: {'UNEQUAL ' + str(different) if different else 'equal'}")


if __name__ == "__main__":
    main()
