"""What the exact search is compared with: other ways to choose, under the same limits.

Each returns children best first, none over a limit, or raises `Infeasible` where it finds none.
Pairs across layers count in the score of what was chosen, not in choosing it.
"""

import itertools
import random
from collections.abc import Mapping

import numpy as np

from fretsaw.puzzle.search.explain import Infeasible, explain, find_reach
from fretsaw.puzzle.search.highs import TIME_LIMIT_S, solve
from fretsaw.puzzle.search.program import Pick, Program, Solution, best_first, within
from fretsaw.puzzle.search.table import Table

MAX_DRAWS = 1000


def greedy(table: Table, limits: Mapping[str, float]) -> list[Solution]:
    """Puzzle's greedy search: an equal budget a layer, the layers by ascending mean score.

    Each layer takes its best-scored attention and FFN that the budget allows, and what it leaves
    over is carried on. Where none fits, the one that needs least beyond it is taken, and the layers
    after it pay.
    """
    program = Program.of(table, limits)
    layers = _decisions_by_layer(program)
    names = list(limits)
    shares = np.array([(limits[n] - program.fixed[n]) / len(layers) for n in names])
    mean_scores = [sum(program.decisions[d].scores.mean() for d in layer) for layer in layers]
    pick, left = [0] * len(program.decisions), np.zeros(len(names))
    for i in np.argsort(mean_scores, kind="stable"):
        decisions = layers[i]
        budget = left + shares
        best: tuple | None = None
        for js in itertools.product(*(range(len(program.decisions[d].names)) for d in decisions)):
            chosen = list(zip(decisions, js, strict=True))
            costs = np.array(
                [sum(program.decisions[d].costs[name][j] for d, j in chosen) for name in names]
            )
            over = max(((costs - budget) / (np.abs(shares) + 1e-300)).max(initial=0.0), 0.0)
            score = sum(program.decisions[d].scores[j] for d, j in chosen)
            key = (over if over > 1e-9 else 0.0, score)
            if best is None or key < best[0]:
                best = (key, chosen, costs)
        assert best is not None, "a subblock without alternatives"
        for d, j in best[1]:
            pick[d] = j
        left = budget - best[2]
    return _fitting(program, [tuple(pick)], limits, "greedy")


def uniform(table: Table, limits: Mapping[str, float]) -> list[Solution]:
    """The same alternatives in every layer: every combination that all layers offer and that fits.

    A layer that may not take what the others do, as the first no attention, bars it from all.
    """
    program = Program.of(table, limits)
    common = {
        subblock: [n for n in names if all(n in layer.get(subblock, {}) for layer in table.layers)]
        for subblock, names in sorted(table.layers[0].items())
    }
    picks = [
        program.pick([names] * len(table.layers)) for names in itertools.product(*common.values())
    ]
    return _fitting(program, picks, limits, "uniform")


def depth(table: Table, limits: Mapping[str, float], *, contiguous: bool = False) -> list[Solution]:
    """Drop as few whole layers as the limits ask for, those that score least when dropped.

    The others stay as they are, the first alternative of each subblock. `contiguous` drops a run of
    neighbours instead; every run of the shortest length that fits comes back.
    """
    program = Program.of(table, limits)
    layers = _decisions_by_layer(program)
    nothing = {
        d: j
        for d, decision in enumerate(program.decisions)
        for j, names in enumerate(decision.names)
        if _is_nothing(names)
    }
    droppable = [i for i, decisions in enumerate(layers) if all(d in nothing for d in decisions)]

    def without(dropped: tuple[int, ...]) -> Pick:
        return tuple(
            nothing[d] if decision.layer in dropped else 0
            for d, decision in enumerate(program.decisions)
        )

    def drop_score(i: int) -> float:
        return sum(program.decisions[d].scores[nothing[d]] for d in layers[i])

    ascending = sorted(droppable, key=drop_score)
    for count in range(len(droppable) + 1):
        sets = [tuple(ascending[:count])]
        if contiguous:
            runs = [tuple(range(i, i + count)) for i in range(len(layers) - count + 1)]
            sets = [run for run in runs if set(run) <= set(droppable)]
        picks = [without(dropped) for dropped in sets]
        if any(program.fits(pick, limits) for pick in picks):
            return _fitting(program, picks, limits, "depth")
    raise _none_found(program, limits, "contiguous" if contiguous else "depth")


def max_params(
    table: Table, limits: Mapping[str, float], time_limit_s: float = TIME_LIMIT_S
) -> list[Solution]:
    """The child with most parameters, exactly; scores are not looked at."""
    if "params" not in table.cost_names:
        raise ValueError(
            "search: method max_params needs the cost 'params' in the table; it has "
            + (", ".join(table.cost_names) or "none")
        )
    program = Program.of(table, limits)
    fewest_removed = [-decision.costs["params"] for decision in program.decisions]
    answer = solve(program, limits, objective=fewest_removed, time_limit_s=time_limit_s)
    return _fitting(program, [answer[0]] if answer else [], limits, "max_params")


def draw(
    table: Table, limits: Mapping[str, float], *, seed: int = 0, num_solutions: int = 1
) -> list[Solution]:
    """Random children from the library, as near the limits as any single change allows.

    Every subblock is drawn uniformly. While a limit is broken, one subblock at random is drawn
    anew from its alternatives that take less of the limits (a child that none mends is drawn
    anew); then subblocks in random order take, at random, what uses more of them and still fits,
    until nothing does. Without limits it is the uniform draw.
    """
    program = Program.of(table, limits)
    rng = random.Random(seed)
    picks: list[Pick] = []
    for _ in range(MAX_DRAWS):
        drawn = [rng.randrange(len(decision.names)) for decision in program.decisions]
        pick = _mended(program, drawn, limits, rng)
        if pick is not None and (filled := _filled(program, pick, limits, rng)) not in picks:
            picks.append(filled)
        if len(picks) == num_solutions:
            break
    return _fitting(program, picks, limits, "random")


# --- parts of them --------------------------------------------------------------------------------


def _decisions_by_layer(program: Program) -> list[list[int]]:
    layers: list[list[int]] = [[] for _ in range(program.num_layers)]
    for d, decision in enumerate(program.decisions):
        layers[decision.layer].append(d)
    return layers


def _is_nothing(names: tuple[str, ...]) -> bool:
    return all(part in ("attn_none", "ffn_none") for name in names for part in name.split("+"))


def _uses(program: Program, limits: Mapping[str, float]) -> list[np.ndarray]:
    """Return per decision what each alternative takes of all limits: the sum of its shares."""
    return [
        sum(
            (decision.costs[name] / (abs(limit) or 1.0) for name, limit in limits.items()),
            np.zeros(len(decision.names)),
        )
        for decision in program.decisions
    ]


def _mended(
    program: Program, pick: list[int], limits: Mapping[str, float], rng: random.Random
) -> list[int] | None:
    uses = _uses(program, limits)
    while not program.fits(tuple(pick), limits):
        cheaper = [
            (d, [j for j in range(len(use)) if use[j] < use[pick[d]]]) for d, use in enumerate(uses)
        ]
        changes = [(d, js) for d, js in cheaper if js]
        if not changes:
            return None
        d, js = rng.choice(changes)
        pick[d] = rng.choice(js)
    return pick


def _filled(
    program: Program, pick: list[int], limits: Mapping[str, float], rng: random.Random
) -> Pick:
    """Let subblocks take more until no single change fits any more."""
    uses = _uses(program, limits)
    total = {name: program.cost(name, tuple(pick)) for name in limits}

    def after(d: int, j: int) -> dict[str, float]:
        costs = program.decisions[d].costs
        return {n: total[n] + float(costs[n][j] - costs[n][pick[d]]) for n in limits}

    is_changed = True
    while is_changed:
        is_changed = False
        for d in rng.sample(range(len(uses)), len(uses)):
            more = [
                j
                for j in range(len(uses[d]))
                if uses[d][j] > uses[d][pick[d]]
                and all(within(value, limits[name]) for name, value in after(d, j).items())
            ]
            if more:
                j = rng.choice(more)
                total, pick[d], is_changed = after(d, j), j, True
    return tuple(pick)


def _fitting(
    program: Program, picks: list[Pick], limits: Mapping[str, float], method: str
) -> list[Solution]:
    fitting = [pick for pick in picks if program.fits(pick, limits)]
    if not fitting:
        raise _none_found(program, limits, method)
    return best_first([program.solution(pick, proved=False) for pick in fitting])


def _none_found(program: Program, limits: Mapping[str, float], method: str) -> Infeasible:
    if solve(program, limits) is None:
        reach = find_reach(program, limits)
        return Infeasible(explain(reach), reach)
    return Infeasible(
        f"search: method {method} finds no child within the limits, though there are some; use "
        "method mip, or loosen the target"
    )
