"""The verify stage: a few whole children are built and measured, and the search corrected by them.

The sum of replace-1-block scores leaves out how changes act together. So diverse solutions of a
search are assembled and their true KL is measured, interaction terms are fitted to what the sums
missed, and the search is solved again with them, until its answer is a child that was measured.
What comes out stands in the search's place: the best of the measured children, best first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fretsaw.stage.artifact import read_manifest, write_json
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.model.config import blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.model.quantised import quantised
from fretsaw.stage.progress import say
from fretsaw.puzzle.library.alternatives import calibrate
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.build.assemble import build_child
from fretsaw.puzzle.search.search import write_search
from fretsaw.puzzle.build.interaction import Interaction, Part, fit_interaction
from fretsaw.puzzle.library.slices import sort_parent
from fretsaw.puzzle.search.program import Solution
from fretsaw.puzzle.library.ranking import read_orders
from fretsaw.puzzle.library.replay import Replay
from fretsaw.puzzle.search.rules import rules_of
from fretsaw.puzzle.scores.scoreboard import Scoreboard
from fretsaw.puzzle.search.solutions import SOLUTIONS, search_table
from fretsaw.puzzle.settings import SearchSettings, VerifySettings
from fretsaw.puzzle.search.table import Pair, Table, read_table
from fretsaw.puzzle.bld.layer_files import check_trained
from fretsaw.stage.settings import build
from fretsaw.stage.execute import StageRun

CORRECTION = "correction.json"
MAX_PAIRS = 200  # the largest terms; more would only slow the search

Choices = tuple[tuple[str, str], ...]


def verify(settings: VerifySettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write what the search wrote, corrected, and `correction.json`: what was learned."""
    # --- set-up -----------------------------------------------------------------------------------
    table = read_table(inputs["search"] / "table.json")
    if table.spans:
        raise ValueError(
            "verify: children are measured before any fusing, but this search counts on it; verify "
            "a search of scores made without `fused`, and fuse afterwards"
        )
    forecast = json.loads((inputs["search"] / "forecast.json").read_text())
    limits = forecast["bounds"]
    searched = read_manifest(inputs["search"])["settings"]
    method = searched.get("method", "verify")
    if any("block" in layer for layer in table.layers) or method != "mip":
        raise ValueError(
            "verify: it corrects sums of attention and FFN scores found by the exact search; give "
            f"a search with method mip (here {method}) of scores without exact"
        )
    settings_of_search = build(SearchSettings, searched)
    rules = rules_of(settings_of_search.engine, settings_of_search.tensor_parallel)
    parent = checkpoint.load(inputs["parent"], device=run.device)
    own = tuple(names_of(block) for block in parent.config.blocks)
    if len(table.layers) != len(own):
        raise ValueError(
            f"{inputs['search']}: searched {len(table.layers)} layers, but {inputs['parent']} has "
            f"{len(own)}; give a search of this parent's scores"
        )
    sort_parent(parent, read_orders(inputs["ranking"], parent.config.num_hidden_layers))
    if "library" in inputs:
        check_trained(inputs["library"], inputs)
    rows = loader.first_rows(inputs["corpus"] / "heldout.npy", settings.seq_len, settings.tokens)
    windows = torch.from_numpy(rows).to(run.device)
    board = Scoreboard(run.resume_folder / "children.jsonl")

    costs: dict[Choices, dict[str, float]] = {}

    def answers(table: Table, count: int) -> list[Choices]:
        found = search_table(table, limits, num_solutions=count, alpha=settings.alpha, rules=rules)
        own = {tuple((c[0], c[1]) for c in solution.choices): solution.costs for solution in found}
        costs.update(own)
        return list(own)

    # --- measure, fit, solve again ----------------------------------------------------------------
    children = answers(table, settings.children)
    first = children[0]
    for solution in json.loads((inputs["search"] / SOLUTIONS).read_text()):
        child = tuple((attention, ffn) for attention, ffn in solution["choices"])
        costs[child] = solution["costs"]
        children += [child] if child not in children else []
    num_most = len(children) + settings.rounds
    run.progress.start("measuring", num_most, unit="child")
    corrected, fit = table, None
    for round_number in range(settings.rounds + 1):
        for number, child in enumerate(children):
            if not board.has(0, number):
                per_row = measure(parent, child, windows, settings, inputs)
                figures = {"kl": per_row.tolist()}
                board.add(0, number, {_flat(child): {"repair": None, "figures": figures}})
            run.step(number + 1, {"kl": board.mean(number, _flat(child), "kl")})
        measured = np.array([board.mean(n, _flat(c), "kl") for n, c in enumerate(children)])
        fit = fit_interaction([_parts(c, own) for c in children], _scores(table), measured)
        corrected = corrected_table(table, fit)
        (best,) = answers(corrected, 1)
        if best in children or round_number == settings.rounds:
            break
        children.append(best)
    assert fit is not None

    # --- what is written --------------------------------------------------------------------------
    order = measured.argsort(kind="stable")
    solutions = [
        Solution(float(measured[n]), False, costs[children[n]], children[n]) for n in order
    ]
    chosen = children[order[0]]
    forecast |= foreseen_again(forecast, solutions[0])
    write_search(
        run.folder, settings_of_search, corrected, solutions, forecast, rules, seed=run.seed
    )
    sums = [sum(_scores(table)[part] for part in _parts(child, own)) for child in children]
    written = [
        {
            "choices": [list(pair) for pair in child],
            "sum": sums[n],
            "corrected": float(fit.left_out[n]),
            "measured": float(measured[n]),
            "stderr": board.stderr(n, _flat(child), "kl"),
            "is_chosen": child == chosen,
        }
        for n, child in enumerate(children)
    ]
    before, after = written[0], written[children.index(chosen)]
    write_json(
        run.folder / CORRECTION,
        {
            "metric": "KL(parent || child), nats a token",
            "children": written,
            "pairs": [
                {"choices": [list(place) for place in pair.choices], "score": pair.score}
                for pair in corrected.pairs[len(table.pairs) :]
            ],
            "before": {key: before[key] for key in ("choices", "measured")},
            "after": {key: after[key] for key in ("choices", "measured")},
        },
    )
    differing = sum(a != b for a, b in zip(first, chosen, strict=True))
    say(
        f"verify: {len(children)} children measured; the sum's choice has KL {measured[0]:.4f}, "
        f"the best {after['measured']:.4f} ({differing} layers differ)"
    )
    return {
        "children": len(children),
        "kl_before": float(measured[0]),
        "kl_after": after["measured"],
        "layers_changed": differing,
    }


@torch.inference_mode()
def measure(
    parent: Decoder,
    child: Choices,
    windows: Int[Tensor, "rows seq_plus_1"],
    settings: VerifySettings,
    inputs: Mapping[str, Path],
) -> Tensor:
    """Return the KL of every row of a child that is assembled as `fretsaw assemble` does it."""
    config = replace(parent.config, blocks=blocks_from_names(child))
    calibration = calibrate(
        parent, inputs["corpus"], settings.repair_tokens, settings.seq_len, settings.batch_rows
    )
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
            kind: {
                name: replace(a, score=a.score + fit.singles.get((i, name), 0.0))
                for name, a in alternatives.items()
            }
            for kind, alternatives in layer.items()
        }
        for i, layer in enumerate(table.layers)
    )
    largest = sorted(fit.pairs.items(), key=lambda item: -abs(item[1]))[:MAX_PAIRS]
    pairs = tuple(Pair(places, term) for places, term in largest if abs(term) > 1e-9)
    return replace(table, layers=layers, pairs=(*table.pairs, *pairs))


def foreseen_again(forecast: Mapping[str, Any], child: Solution) -> dict[str, Any]:
    """Return what a search forecast for its child, said of another one at the same scenario."""
    before = forecast["child"]
    speedup = {
        phase: value * before[f"{phase}_ms"] / child.costs[f"{phase}_ms"]
        for phase, value in forecast["speedup"].items()
    }
    return {"child": child.costs, "speedup": speedup, "score": child.score}


def _scores(table: Table) -> dict[Part, float]:
    return {
        (i, name): alternative.score
        for i, layer in enumerate(table.layers)
        for alternatives in layer.values()
        for name, alternative in alternatives.items()
    }


def _parts(child: Choices, own: Sequence[tuple[str, str]]) -> list[Part]:
    """Return what a child changes of its parent."""
    return [
        (i, name)
        for i, (pair, before) in enumerate(zip(child, own, strict=True))
        for name, old in zip(pair, before, strict=True)
        if name != old
    ]


def _flat(child: Choices) -> tuple[str, ...]:
    return tuple(name for pair in child for name in pair)
