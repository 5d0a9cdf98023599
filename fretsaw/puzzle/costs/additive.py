"""Times as sums of parts: medians of interleaved rounds, one additive fit, and how far it errs."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fretsaw.model.config import BlockConfig
from fretsaw.puzzle.costs.probes import Models

FIXED = "fixed"  # what every model pays: embeddings, head, sampling, dispatch
WHOLE_WEIGHT = 2.0  # of a whole model's relative error in the fit, a stack's being 1


def round_medians(
    rounds: Mapping[str, Sequence[float]], *, is_interleaved: bool = True
) -> tuple[dict[str, float], dict[str, float]]:
    """Return each model's median time over rounds, and the noise of one of its rounds.

    Of interleaved rounds each is divided by how slow it was, the median over models of time over
    that model's own median: a machine that slows down for a while slows a whole round, and what is
    left is how models compare. The noise is the median over rounds of |time / median - 1|.
    """
    table = np.array([list(times) for times in rounds.values()])  # models, rounds
    if is_interleaved:
        table = table / np.median(table / np.median(table, axis=1, keepdims=True), axis=0)
    medians = np.median(table, axis=1)
    noise = np.median(np.abs(table / medians[:, None] - 1), axis=1)
    return (
        dict(zip(rounds, medians.tolist(), strict=True)),
        dict(zip(rounds, noise.tolist(), strict=True)),
    )


def fit_additive(
    models: Models, times: Mapping[str, float], whole: Collection[str] = ()
) -> dict[str, float]:
    """Return cost by name (and what is fixed) of time = fixed + sum of the parts of all layers.

    Non-negative least squares of the relative error, over stacks of n and 2n layers and whole
    models alike: so a part's cost is what one more of it adds among neighbours as they are served.
    The models in `whole` weigh more, since they are what the sums are for. The unknowns are what a
    size adds to the next smaller of its kind, so that no FFN costs more than a wider one, and no
    attention more than one with more key-value heads, but for the noise.
    """
    from scipy.optimize import nnls

    counts = {name: Counter(parts_of(blocks)) for name, blocks in models.items()}
    parts = sorted({part for count in counts.values() for part in count})
    contained = {part: [p for p in parts if _is_within(p, part)] for part in parts}
    design = np.array(
        [
            [1.0, *(sum(count[p] for p in parts if part in contained[p]) for part in parts)]
            for count in counts.values()
        ]
    )
    weights = np.array([WHOLE_WEIGHT if model in whole else 1.0 for model in models])
    scale = weights / np.array([times[model] for model in models])
    solution, _ = nnls(design * scale[:, None], weights)
    fixed, *added = solution.tolist()
    step = dict(zip(parts, added, strict=True))
    return {FIXED: fixed, **{part: sum(step[p] for p in contained[part]) for part in parts}}


def predict(costs: Mapping[str, float], blocks: Sequence[BlockConfig]) -> float:
    """Return what is fixed and the sum of the parts of all layers."""
    return costs[FIXED] + sum(costs.get(part, 0.0) for part in parts_of(blocks))


def left_out_errors(
    models: Models, times: Mapping[str, float], whole: Collection[str], children: Collection[str]
) -> dict[str, float]:
    """Return |predicted / measured - 1| of each child when the fit has not seen its time."""
    errors = {}
    for child in children:
        others = {model: blocks for model, blocks in models.items() if model != child}
        fit = fit_additive(others, times, whole)
        errors[child] = abs(predict(fit, models[child]) / times[child] - 1)
    return errors


def parts_of(blocks: Sequence[BlockConfig]) -> list[str]:
    """Return the names of all subblocks that take time."""
    names = (name for block in blocks for name in (block.attention_name, block.ffn_name))
    return [name for name in names if not name.endswith("_none")]


def _is_within(part: str, other: str) -> bool:
    """Whether one subblock is the other or a smaller one of its kind: ffn64 of ffn128."""
    kind, size = _kind_and_size(part)
    other_kind, other_size = _kind_and_size(other)
    return kind == other_kind and size <= other_size


def _kind_and_size(part: str) -> tuple[str, int]:
    sized = re.fullmatch(r"(gqa|ffn)(\d+)(@\w+)?", part)
    return (sized[1] + (sized[3] or ""), int(sized[2])) if sized else (part, 0)
