"""Small random search tables, and every child there is of them."""

import itertools
import random

from fretsaw.puzzle.search.table import Alternative, Table

SHAPES = ({"attention": ("gqa2", "gqa1", "attn_none"), "ffn": ("ffn64", "ffn32", "ffn_none")},)
BLOCKS = {"block": ("gqa2+ffn64", "gqa1+ffn32", "gqa2+ffn_none", "attn_none+ffn64")}


def random_table(seed: int, num_layers: int, *, block: bool, num_costs: int = 3) -> Table:
    """Small figures drawn from few values, so that ties are common in every third table."""
    rng = random.Random(seed)
    names = ("runtime_ms", "memory_mib", "params")[:num_costs]

    def figure() -> float:
        return float(rng.randint(0, 4)) if seed % 3 == 0 else rng.lognormvariate(0, 1)

    def layer() -> dict[str, dict[str, Alternative]]:
        shape = BLOCKS if block else SHAPES[0]
        return {
            subblock: {
                name: Alternative(figure(), {cost: figure() for cost in names})
                for name in alternatives
            }
            for subblock, alternatives in shape.items()
        }

    layers = tuple(layer() for _ in range(num_layers))
    return Table(layers, dict.fromkeys(names, 0.5))


def children(table: Table) -> list[tuple[float, dict[str, float], tuple]]:
    """Every child with attention in layer 0: its score, costs and choices."""
    per_layer = []
    for i, layer in enumerate(table.layers):
        options = []
        for names in itertools.product(*(layer[s] for s in sorted(layer))):
            if i == 0 and "attn_none" in names[0]:
                continue
            taken = [layer[s][n] for s, n in zip(sorted(layer), names, strict=True)]
            options.append((names if len(names) == 2 else names[0], taken))
        per_layer.append(options)
    found = []
    for child in itertools.product(*per_layer):
        taken = [a for _, alternatives in child for a in alternatives]
        costs = {
            n: table.fixed.get(n, 0.0) + sum(a.costs[n] for a in taken) for n in table.cost_names
        }
        chosen = {
            (i, n) for i, (c, _) in enumerate(child) for n in ([c] if isinstance(c, str) else c)
        }
        score = sum(a.score for a in taken)
        score += sum(pair.score for pair in table.pairs if chosen >= set(pair.choices))
        found.append((score, costs, tuple(c for c, _ in child)))
    return found
