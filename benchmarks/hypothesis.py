"""The method's own hypothesis: does the sum of replace-1-block scores foretell a child's true KL?

    python benchmarks/hypothesis.py --parent P --corpus C --ranking R --scores S... [--children 50]

Random children are assembled as `fretsaw assemble` does and measured on held-out text that was not
scored on. Printed are Spearman's correlation between the sum of scores and the true KL, the same
with interaction terms (each child predicted by a fit on the others), how well pairs add up within a
layer, and two regrets, of sums and of corrected sums: of the random child that is least among those
of at most the same size, and of the exact search's own choice at half, 65 and 80 % of the parent's
parameters, against the best child of at most that size that was measured at all.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.config import BlockConfig, ModelConfig, blocks_from_names
from fretsaw.model.size import block_params
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.children.assemble import build_child
from fretsaw.puzzle.children.interaction import Interaction, Part, fit_interaction
from fretsaw.puzzle.children.verify import corrected_table
from fretsaw.puzzle.library.alternatives import calibrate
from fretsaw.puzzle.library.ranking import BATCH_ROWS, read_orders
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.library.slices import sort_parent
from fretsaw.puzzle.search.solutions import search_table
from fretsaw.puzzle.search.table import Alternative, Table

Choices = list[tuple[str, str]]


def random_child(layers: list[dict], config: ModelConfig, chooser: random.Random) -> Choices:
    """Return a child that keeps each subblock with a chance of its own, else takes any other."""
    keep = chooser.uniform(0.2, 0.9)
    child = []
    for layer, block in zip(layers, config.blocks, strict=True):
        pair = []
        for kind, own in zip(("attention", "ffn"), names_of(block), strict=True):
            others = [name for name in layer[kind] if name != own]
            pair.append(own if chooser.random() < keep else chooser.choice(others))
        child.append((pair[0], pair[1]))
    return child


@torch.inference_mode()
def true_kl(parent, choices: Choices, corpus: Path, replay: Replay, tokens: int, seq: int) -> float:
    config = replace(parent.config, blocks=blocks_from_names(choices))
    calibration = calibrate(parent, corpus, tokens, seq, BATCH_ROWS)
    blocks = [b for b, _ in build_child(parent, config.blocks, calibration, repair=True)]
    return replay.figures_of(parent.with_blocks(config, blocks)).kl.mean().item()


def correlation(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return Spearman's rank correlation."""
    return float(np.corrcoef(rankdata(predicted), rankdata(measured))[0, 1])


def search_of(table: dict, config: ModelConfig) -> Table:
    """Return the scores as a table to search, parameters being the cost."""

    def alternative(name: str, score: float) -> Alternative:
        sides = ("attn_none", name) if name.startswith("ffn") else (name, "ffn_none")
        size = block_params(config, BlockConfig.from_names(*sides)).total
        return Alternative(score, {"params": float(size)})

    return Table(
        layers=tuple(
            {
                kind: {name: alternative(name, entry["score"]) for name, entry in entries.items()}
                for kind, entries in layer.items()
            }
            for layer in table["layers"]
        )
    )


def judge_search(
    searched: Table,
    fit: Interaction,
    measure: Callable[[Choices], float],
    measured: np.ndarray,
    sizes: np.ndarray,
    whole: float,
) -> list[dict[str, float]]:
    """Print and return the true KL of the exact search's choices, before and after correction."""
    rows = []
    corrected = corrected_table(searched, fit)
    for share in (0.5, 0.65, 0.8):
        limit = {"params": share * whole}
        found = {
            name: measure([(c[0], c[1]) for c in search_table(table, limit)[0].choices])
            for name, table in (("sum", searched), ("corrected", corrected))
        }
        random_best = measured[sizes <= share * whole].min(initial=np.inf)
        best = min(*found.values(), random_best)
        rows.append({"share": share, **found, "best random": float(random_best)})
        print(
            f"exact search at {share:.0%} of the parameters: KL {found['sum']:.4f} by the sum, "
            f"{found['corrected']:.4f} corrected, best random child {random_best:.4f}; regrets "
            f"{found['sum'] - best:.4f} and {found['corrected'] - best:.4f}",
            flush=True,
        )
    return rows


def judge(
    table: dict, children: list[list[Part]], measured: np.ndarray, sizes: np.ndarray
) -> tuple[dict[str, Any], Interaction]:
    """Print and return how well a table's scores foretell the children's measured KL."""
    scores: dict[Part, float] = {
        (i, name): entry["score"]
        for i, layer in enumerate(table["layers"])
        for kind in layer.values()
        for name, entry in kind.items()
    }
    sums = np.array([sum(scores[part] for part in child) for child in children])
    fit = fit_interaction(children, scores, measured)
    corrected = fit.left_out
    result: dict[str, Any] = {"points": np.stack([sums, corrected, measured], 1).tolist()}
    for name, predicted in (("sum", sums), ("corrected", corrected)):
        rho = correlation(predicted, measured)
        draws = np.random.default_rng(0).integers(len(measured), size=(500, len(measured)))
        drawn = [correlation(predicted[d], measured[d]) for d in draws]
        low, high = np.quantile(drawn, (0.025, 0.975))
        regrets = []
        for limit in np.quantile(sizes, (0.25, 0.5, 0.75, 1.0)):
            fits = np.flatnonzero(sizes <= limit)
            chosen = fits[predicted[fits].argmin()]
            regrets.append(float(measured[chosen] - measured[fits].min()))
        result[name] = {"spearman": rho, "interval": [low, high], "regret": regrets}
        shown = ", ".join(f"{regret:.4f}" for regret in regrets)
        print(f"{name}: Spearman {rho:.3f} ({low:.3f} to {high:.3f}); ", end="")
        print(f"regret among those of at most 25, 50, 75, 100 % in size: {shown} nats")
    miss = [abs(pair["joint"] - pair["sum"]) / max(pair["joint"], 1e-4) for pair in table["joint"]]
    if miss:
        result["additivity_error"] = float(np.median(miss))
        print(f"within a layer, joint score against the sum: median {np.median(miss):.0%} off")
    return result, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("parent", "corpus", "ranking"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="tables to judge")
    parser.add_argument("--children", type=int, default=50)
    parser.add_argument("--repair-tokens", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    parent = checkpoint.load(options.parent)
    config = parent.config
    sort_parent(parent, read_orders(options.ranking, config.num_hidden_layers))
    tables = {str(f): json.loads((f / "scores.json").read_text()) for f in options.scores}
    layers, seq = next(iter(tables.values()))["layers"], options.seq_len
    scored = max(table["tokens"] for table in tables.values())
    rows = loader.first_rows(options.corpus / "heldout.npy", seq, scored + options.tokens)
    fresh = torch.from_numpy(rows[scored // seq :])
    assert len(fresh), "no held-out text is left that was not scored on"
    replay = Replay(parent, fresh, BATCH_ROWS)

    chooser = random.Random(options.seed)
    children = [random_child(layers, config, chooser) for _ in range(options.children)]
    parts = [[(i, n) for i, pair in enumerate(c) for n in pair] for c in children]
    measured = np.zeros(len(children))

    def measure(child: Choices) -> float:
        return true_kl(parent, child, options.corpus, replay, options.repair_tokens, seq)

    for i, child in enumerate(children):
        measured[i] = measure(child)
        print(f"child {i}: true KL {measured[i]:.4f}", flush=True)

    def params(choices: Choices) -> float:
        return sum(block_params(config, BlockConfig.from_names(*p)).total for p in choices)

    sizes = np.array([params(child) for child in children])
    whole = params([names_of(block) for block in config.blocks])
    results = []
    for name, table in tables.items():
        print(f"\n{name}, scored on {table['tokens']} tokens")
        result, fit = judge(table, parts, measured, sizes)
        searched = search_of(table, config)
        result["search"] = judge_search(searched, fit, measure, measured, sizes, whole)
        results.append({"scores": name, **result})
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
