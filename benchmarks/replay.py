"""The score table against what peers do: every pair of a layer, by full forwards, with reloads.

    python benchmarks/replay.py [--layers 16] [--out replay.json]

The parent has random weights (times do not depend on them). Three factors are measured in one run:
A + F candidates a layer instead of A x F, replay from the frontier instead of full forwards (with
its FLOP bound beside it), and no reload of the model per candidate. Then the whole score stage,
repair and all, stands against the peer's table. Memory and disk reads are watched on the way.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data.loader import write_tokens
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.place import HALVES, Place
from fretsaw.puzzle.library.ranking import rank
from fretsaw.puzzle.library.replay import Replay, flop_bound, subblock
from fretsaw.puzzle.library.slices import build_block
from fretsaw.puzzle.scores.replacements import all_jobs
from fretsaw.puzzle.scores.score import score
from fretsaw.puzzle.settings import RankSettings, ScoreSettings
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress

SEQ, ROWS, BATCH_ROWS = 256, 16, 16


def config_of(layers: int) -> ModelConfig:
    return ModelConfig.uniform(
        num_hidden_layers=layers,
        num_key_value_heads=4,
        intermediate_size=1024,
        vocab_size=1024,
        hidden_size=384,
        num_attention_heads=12,
        head_dim=32,
        tie_word_embeddings=True,
    )


def places(config: ModelConfig) -> list[Place]:
    return [Place(i, half) for i in range(config.num_hidden_layers) for half in HALVES]


@torch.inference_mode()
def seconds_by_replay(parent: Decoder, windows: torch.Tensor) -> list[float]:
    """Time the parent's own subblocks as candidates, so that only where they start matters."""
    config = parent.config
    replay = Replay(parent, windows, BATCH_ROWS)
    seconds = []
    for at in places(config):
        block = parent.model.layers[at.layer]
        assert isinstance(block, Block)
        own = subblock(build_block(block, config, config.blocks[at.layer], at.layer), at.half)
        started = time.perf_counter()
        replay.figures(replay.frontier.after([own]), at + 1)
        seconds.append(time.perf_counter() - started)
        replay.frontier.walk()
    return seconds


@torch.inference_mode()
def seconds_by_full_forwards(parent: Decoder, windows: torch.Tensor, count: int) -> list[float]:
    replay = Replay(parent, windows, BATCH_ROWS)
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        replay.figures(replay.frontier.states, Place(0))
        seconds.append(time.perf_counter() - started)
    return seconds


def read_bytes() -> int:
    """Return what this process has read from files, of the page cache too."""
    io = Path("/proc/self/io")
    if not io.exists():
        return 0
    return int(next(line for line in io.read_text().splitlines() if "rchar" in line).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    config = config_of(options.layers)
    parent = Decoder(config).requires_grad_(False)
    parent.init_weights(0)
    windows = torch.randint(config.vocab_size, (ROWS, SEQ + 1))
    num_subblocks = 2 * config.num_hidden_layers

    # --- replay against full forwards, interleaved ------------------------------------------------
    seconds_by_replay(parent, windows)
    ratios, full_s = [], []
    for _ in range(options.rounds):
        full = seconds_by_full_forwards(parent, windows, num_subblocks)
        ratios.append(sum(full) / sum(seconds_by_replay(parent, windows)))
        full_s += full
    replay_gain = statistics.median(ratios)
    bound = flop_bound(config, SEQ, places(config))

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("parent", "corpus", "rank", "score"):
            (root / name).mkdir()
        checkpoint.write(parent, root / "parent", like=None)
        loads = []
        for _ in range(5):
            started = time.perf_counter()
            checkpoint.load(root / "parent")
            loads.append(time.perf_counter() - started)
        one_full, one_load = statistics.median(full_s), statistics.median(loads)

        # --- the whole stage, on the same number of tokens ----------------------------------------
        rng = np.random.default_rng(0)
        for part, tokens in (("train", 40_000), ("heldout", ROWS * SEQ + 1)):
            write_tokens(
                root / f"corpus/{part}.npy",
                rng.integers(config.vocab_size, size=tokens),
                vocab_size=config.vocab_size,
            )
        inputs = {"parent": root / "parent", "corpus": root / "corpus"}
        run = {
            name: StageRun(root / name, 0, "cpu", "fp32", Progress(name, root / name))
            for name in ("rank", "score")
        }
        rank(RankSettings(tokens=ROWS * SEQ), inputs, run["rank"])
        settings = ScoreSettings(tokens=ROWS * SEQ, repair_tokens=ROWS * SEQ, joint_pairs=0)
        peaks: list[float] = []
        reads: list[int] = []
        plain_step = run["score"].step

        def watch(step: int, metrics: dict | None = None, *, row: bool = True) -> None:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            reads.append(read_bytes())
            plain_step(step, metrics, row=row)

        run["score"].step = watch  # type: ignore[method-assign]
        started = time.perf_counter()
        score(settings, inputs | {"ranking": root / "rank"}, run["score"])
        ours_s = time.perf_counter() - started
        files = [f for n in ("rank", "score") for f in (root / n).rglob("*") if f.is_file()]
        files_mib = sum(file.stat().st_size for file in files) / 2**20

    exact = all_jobs(config, ScoreSettings(exact=True), 0)
    singles = all_jobs(config, settings, 0)
    num_pairs, num_singles = (sum(map(len, jobs.values())) for jobs in (exact, singles))
    peer_s = num_pairs * (one_full + one_load)
    result = {
        "layers": options.layers,
        "candidates": num_singles,
        "pairs": num_pairs,
        "factor_additive": num_pairs / num_singles,
        "factor_replay": replay_gain,
        "flop_bound": bound,
        "share_of_bound": replay_gain / bound,
        "factor_reload": (one_full + one_load) / one_full,
        "peer_s": peer_s,
        "stage_s": ours_s,
        "stage_gain": peer_s / ours_s,
        "growth_mib": peaks[-1] - peaks[len(peaks) // 10],
        "reads_after_load_mib": (reads[-1] - reads[0]) / 2**20,
        "files_mib": files_mib,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    factors = result["factor_additive"] * replay_gain * result["factor_reload"]
    print(f"A + F: {result['factor_additive']:.2f}x ({num_singles} instead of {num_pairs})")
    print(f"replay: {replay_gain:.2f}x; FLOP bound {bound:.2f}x; {replay_gain / bound:.0%} of it")
    print(f"no reload: {result['factor_reload']:.2f}x ({one_load * 1e3:.0f} ms a load)")
    print(f"together {factors:.1f}x, without repair")
    print(
        f"the stage, repair included: {ours_s:.0f} s against {peer_s:.0f} s: {peer_s / ours_s:.1f}x"
    )
    print(
        f"peak memory grew by {result['growth_mib']:.0f} MiB over the last 90 % of {len(peaks)} "
        f"candidates; {result['reads_after_load_mib']:.2f} MiB read, {files_mib:.1f} MiB of files"
    )
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
