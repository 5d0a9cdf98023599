"""The verify stage: a few whole children are built and measured, and the search corrected by them.

The sum of replace-1-block scores leaves out how changes act together. So diverse solutions of a
search are assembled and their true KL is measured, interaction terms are fitted to what the sums
missed, and the search is solved again with them, until its answer is a child that was measured.
What comes out stands in the search's place: the best of the measured children, best first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.data import loader
from fretsaw.data.by_source import Shares, source_shares
from fretsaw.model.config import blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.model.quantised import quantised
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.bld.layer_files import check_trained
from fretsaw.puzzle.children.assemble import build_child
from fretsaw.puzzle.children.interaction import Interaction, fit_interaction
from fretsaw.puzzle.library.alternatives import calibrate, judge_gradients, open_parent
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.scores.scoreboard import Scoreboard
from fretsaw.puzzle.search.program import Solution
from fretsaw.puzzle.search.rules import Rules, rules_of
from fretsaw.puzzle.search.search import write_search
from fretsaw.puzzle.search.solutions import read_solutions, search_table
from fretsaw.puzzle.search.table import Pair, Part, Table
from fretsaw.puzzle.search.table_json import pair_to_json, read_table
from fretsaw.puzzle.settings import SearchSettings, VerifySettings
from fretsaw.stage.artifact import read_manifest, read_output
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.settings import build
from fretsaw.stage.whole import write_json

CORRECTION = "correction.json"
MAX_PAIRS = 200  # the largest terms; more would only slow the search

Choices = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Searched:
    """A finished search: what it was asked, and what it foretold."""

    table: Table
    settings: SearchSettings
    rules: Rules
    forecast: Mapping[str, Any]


def verify(settings: VerifySettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write what the search wrote, corrected, and `correction.json`: what was learned."""
    # --- set-up -----------------------------------------------------------------------------------
    searched = read_searched(inputs["search"])
    table, scores = searched.table, scores_of(searched.table)
    parent = open_parent(inputs, run.device)
    own = tuple(names_of(block) for block in parent.config.blocks)
    if len(table.layers) != len(own):
        raise ValueError(
            f"{inputs['search']}: searched {len(table.layers)} layers, but {inputs['parent']} has "
            f"{len(own)}; give a search of this parent's scores"
        )
    if "library" in inputs:
        check_trained(inputs["library"], inputs)
    rows = loader.first_rows(inputs["corpus"] / "heldout.npy", settings.seq_len, settings.tokens)
    windows = torch.from_numpy(rows).to(run.device)
    text = inputs["corpus"], settings.repair_tokens, settings.seq_len
    gradients = judge_gradients(parent, *text, run) if settings.judge == "estimate" else None
    kl_of = partial(
        measure, parent, windows=windows, settings=settings, inputs=inputs, gradients=gradients
    )
    board = Scoreboard(run.resume_folder / "children.jsonl")

    # --- measure, fit, solve again ----------------------------------------------------------------
    costs = answers(searched, table, settings.children, settings.alpha)
    costs |= {as_choices(s["choices"]): s["costs"] for s in read_solutions(inputs["search"])}
    children = list(costs)
    num_most = len(children) + settings.rounds
    run.progress.start("measuring", num_most, unit="child")
    while True:
        measured = measure_missing(children, kl_of, board, run)
        fit = fit_interaction([changed(child, own) for child in children], scores, measured)
        corrected = corrected_table(table, fit)
        answer = answers(searched, corrected, 1, settings.alpha)
        costs |= answer
        (best,) = answer
        if best in children or len(children) == num_most:
            break
        children.append(best)

    # --- what is written --------------------------------------------------------------------------
    order = measured.argsort(kind="stable").tolist()
    chosen = order[0]
    solutions = [
        Solution(float(measured[n]), False, costs[children[n]], children[n]) for n in order
    ]
    forecast = {**searched.forecast, **foreseen_again(searched.forecast, solutions[0])}
    write_search(
        run.folder, searched.settings, corrected, solutions, forecast, searched.rules, seed=run.seed
    )
    sums = [sum(scores[part] for part in changed(child, own)) for child in children]
    learned = corrected.pairs[len(table.pairs) :]
    shares = source_shares(inputs["corpus"], settings.seq_len, len(rows))
    record = correction(children, sums, fit.left_out, board, chosen, learned, shares)
    write_json(run.folder / CORRECTION, record)
    return say_what_changed(children, measured, chosen)


def read_searched(folder: Path) -> Searched:
    """Read a finished search. Raises `ValueError` for one that cannot be corrected like this."""
    table = read_table(folder / "table.json")
    if table.spans:
        raise ValueError(
            "verify: children are measured before any fusing, but this search counts on it; verify "
            "a search of scores made without `fused`, and fuse afterwards"
        )
    forecast = read_output(folder, "forecast.json")
    values = read_manifest(folder)["settings"]
    method = values.get("method", "verify")
    if any("block" in layer for layer in table.layers) or method != "mip":
        raise ValueError(
            "verify: it corrects sums of attention and FFN scores found by the exact search; give "
            f"a search with method mip (here {method}) of scores without exact"
        )
    settings = build(SearchSettings, values)
    return Searched(table, settings, rules_of(settings.engine, settings.tensor_parallel), forecast)


def answers(
    searched: Searched, table: Table, count: int, alpha: float
) -> dict[Choices, dict[str, float]]:
    """Ask the search again, of another table perhaps: children, best first, with their costs."""
    found = search_table(
        table,
        searched.forecast["bounds"],
        num_solutions=count,
        alpha=alpha,
        rules=searched.rules,
    )
    return {as_choices(solution.choices): solution.costs for solution in found}


def as_choices(pairs: Iterable[Sequence[str]]) -> Choices:
    """Return a solution's choices as they name a child here."""
    return tuple((attention, ffn) for attention, ffn in pairs)


def measure_missing(
    children: Sequence[Choices],
    kl_of: Callable[[Choices], Float[Tensor, " rows"]],
    board: Scoreboard,
    run: StageRun,
) -> Float[np.ndarray, " children"]:
    """Return every child's KL; those that are not on the board yet are built and measured."""
    for number, child in enumerate(children):
        if not board.has(0, number):
            figures = {"kl": kl_of(child).tolist()}
            board.add(0, number, {_flat(child): {"repair": None, "figures": figures}})
        run.step(number + 1, {"kl": board.mean(number, _flat(child), "kl")})
    return np.array([board.mean(n, _flat(child), "kl") for n, child in enumerate(children)])


@torch.inference_mode()
def measure(
    parent: Decoder,
    child: Choices,
    windows: Int[Tensor, "rows seq_plus_1"],
    settings: VerifySettings,
    inputs: Mapping[str, Path],
    gradients: Path | None,
) -> Float[Tensor, " rows"]:
    """Return the KL of every row of a child that is assembled as `fretsaw assemble` does it."""
    config = replace(parent.config, blocks=blocks_from_names(child))
    text = inputs["corpus"], settings.repair_tokens, settings.seq_len
    calibration = calibrate(parent, *text, settings.batch_rows, gradients)
    library = inputs.get("library")
    blocks = config.in_full.blocks
    built = build_child(parent, blocks, calibration, repair=True, library=library)
    decoder = parent.with_blocks(config.in_full, [block for block, _ in built])
    served = quantised(decoder, config.blocks)
    return Replay(parent, windows, settings.batch_rows).figures_of(served).kl


def corrected_table(table: Table, fit: Interaction) -> Table:
    """Return the table with the fitted terms: in the scores, and as its largest pairs."""
    layers = tuple(
        {
            subblock: {
                name: replace(a, score=a.score + fit.singles.get((i, name), 0.0))
                for name, a in alternatives.items()
            }
            for subblock, alternatives in layer.items()
        }
        for i, layer in enumerate(table.layers)
    )
    largest = sorted(fit.pairs.items(), key=lambda item: -abs(item[1]))[:MAX_PAIRS]
    pairs = tuple(Pair(parts, term) for parts, term in largest if abs(term) > 1e-9)
    return replace(table, layers=layers, pairs=(*table.pairs, *pairs))


def foreseen_again(forecast: Mapping[str, Any], child: Solution) -> dict[str, Any]:
    """Return what a search forecast for its child, said of another one at the same scenario."""
    before = forecast["child"]
    speedup = {
        phase: value * before[f"{phase}_ms"] / child.costs[f"{phase}_ms"]
        for phase, value in forecast["speedup"].items()
    }
    return {"child": child.costs, "speedup": speedup, "score": child.score}


def correction(
    children: Sequence[Choices],
    sums: Sequence[float],
    left_out: Float[np.ndarray, " children"],
    board: Scoreboard,
    chosen: int,
    learned: Sequence[Pair],
    shares: Shares,
) -> dict[str, Any]:
    """Return every child's sum of scores, what is foretold of it, left out, and what was measured.

    With them stand the pairs that were `learned`, and the choice before and after.
    """
    rows = [
        {
            "choices": [list(pair) for pair in child],
            "sum": sums[n],
            "corrected": float(left_out[n]),
            "measured": board.mean(n, _flat(child), "kl"),
            "stderr": board.stderr(n, _flat(child), "kl"),
            **board.by_source(n, _flat(child), "kl", shares),
            "is_chosen": n == chosen,
        }
        for n, child in enumerate(children)
    ]
    return {
        "metric": "KL(parent || child), nats a token",
        "children": rows,
        "pairs": [pair_to_json(pair) for pair in learned],
        "before": {key: rows[0][key] for key in ("choices", "measured")},
        "after": {key: rows[chosen][key] for key in ("choices", "measured")},
    }


def say_what_changed(
    children: Sequence[Choices], measured: Float[np.ndarray, " children"], chosen: int
) -> dict[str, Any]:
    """Print how the best child compares with the sum's choice, which is the first; return it."""
    before, after = float(measured[0]), float(measured[chosen])
    differing = sum(a != b for a, b in zip(children[0], children[chosen], strict=True))
    say(
        f"verify: {len(children)} children measured; the sum's choice has KL {before:.4f}, "
        f"the best {after:.4f} ({differing} layers differ)"
    )
    return {
        "children": len(children),
        "kl_before": before,
        "kl_after": after,
        "layers_changed": differing,
    }


def scores_of(table: Table) -> dict[Part, float]:
    """Return every alternative's score."""
    return {
        (i, name): alternative.score
        for i, layer in enumerate(table.layers)
        for alternatives in layer.values()
        for name, alternative in alternatives.items()
    }


def changed(child: Choices, own: Choices) -> list[Part]:
    """Return what a child changes of its parent."""
    return [
        (i, name)
        for i, (pair, before) in enumerate(zip(child, own, strict=True))
        for name, old in zip(pair, before, strict=True)
        if name != old
    ]


def _flat(child: Choices) -> tuple[str, ...]:
    return tuple(name for pair in child for name in pair)
