"""Frontier replay against full forwards: time in one run, the FLOP bound beside it, and memory.

    python benchmarks/replay.py [--out replay.json]

The parent has random weights (times do not depend on them). Both sides score the same candidates on
the same rows: "full" runs every candidate from the embeddings, "replay" from the frontier.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path

import torch

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.puzzle.library import build_block
from fretsaw.puzzle.replay import Replay, flop_bound

SEQ, ROWS, BATCH_ROWS = 256, 32, 16
CONFIG = ModelConfig.uniform(
    num_hidden_layers=8,
    num_key_value_heads=4,
    intermediate_size=1024,
    vocab_size=1024,
    hidden_size=384,
    num_attention_heads=12,
    head_dim=32,
    tie_word_embeddings=True,
)


def candidate(parent: Decoder, layer: int, kind: str) -> Block:
    """Return a block as costly as the parent's, so that only where it starts makes a difference."""
    block = parent.model.layers[layer]
    assert isinstance(block, Block)
    own = CONFIG.blocks[layer]
    names = (own.attention_name, own.ffn_name)
    return build_block(block, CONFIG, BlockConfig.from_names(*names), layer)


@torch.inference_mode()
def score_by_replay(parent: Decoder, ids: torch.Tensor) -> list[float]:
    replay = Replay(parent, ids, BATCH_ROWS, score=True)
    seconds = []
    for i, block in enumerate(parent.model.layers):
        assert isinstance(block, Block)
        for kind in ("attention", "ffn"):
            c = candidate(parent, i, kind)
            move = c.feed if kind == "ffn" else lambda x, c=c: c.attend(x, replay.context)
            started = time.perf_counter()
            replay.kl(move, i, after=kind)
            seconds.append(time.perf_counter() - started)
            walk = block.feed if kind == "ffn" else lambda x, b=block: b.attend(x, replay.context)
            replay.advance(walk)
    return seconds


@torch.inference_mode()
def score_by_full_forwards(parent: Decoder, ids: torch.Tensor) -> list[float]:
    """Run each candidate from the embeddings: the first layer's replay is a full forward."""
    replay = Replay(parent, ids, BATCH_ROWS, score=True)
    c = candidate(parent, 0, "attention")
    seconds = []
    for _ in range(2 * CONFIG.num_hidden_layers):
        started = time.perf_counter()
        replay.kl(lambda x: c.attend(x, replay.context), 0, after="attention")
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    parent = Decoder(CONFIG).requires_grad_(False)
    parent.init_weights(0)
    ids = torch.randint(CONFIG.vocab_size, (ROWS, SEQ))
    kinds = [(i, k) for i in range(CONFIG.num_hidden_layers) for k in ("attention", "ffn")]
    bound = flop_bound(CONFIG, SEQ, kinds)
    score_by_replay(parent, ids)
    ratios = []
    for _ in range(options.rounds):
        full, replayed = sum(score_by_full_forwards(parent, ids)), sum(score_by_replay(parent, ids))
        ratios.append(full / replayed)
    gain = statistics.median(ratios)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    small = ids[:4]
    num_candidates = 0
    while num_candidates < 300:
        num_candidates += len(score_by_replay(parent, small))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result = {
        "gain": gain,
        "spread": [min(ratios), max(ratios)],
        "flop_bound": bound,
        "share_of_bound": gain / bound,
        "peak_growth_mib_over_300_candidates": growth,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(f"replay is {gain:.2f}x full forwards; FLOP bound {bound:.2f}x; {gain / bound:.0%} of it")
    print(f"peak memory grew by {growth:.1f} MiB over {num_candidates} candidates")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
