"""The score table: what is written of the figures on a scoreboard, layer by layer."""

import itertools
from typing import Any

from fretsaw.data.by_source import Shares
from fretsaw.model.config import ModelConfig
from fretsaw.model.place import Place
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.scores.replacements import span_of
from fretsaw.puzzle.scores.scoreboard import Names, Rows, Scoreboard
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.stage.progress import say


def is_own(config: ModelConfig, at: Place, names: Names) -> bool:
    """Whether these names, put from there on, are what the parent has there itself."""
    own = [name for block in config.blocks for name in names_of(block)]
    return tuple(own[at.number : at.number + len(names)]) == names


def layer_scores(
    board: Scoreboard, config: ModelConfig, settings: ScoreSettings, shares: Shares
) -> list[dict[str, dict[str, Any]]]:
    """Return the scores of every layer: by half, or of whole blocks where `exact`.

    A score within what the parent's own subblocks come to is rounding, and 0.
    """
    rounding = max(
        abs(board.mean(number, names, settings.metric))
        for number, names in board.changes()
        if is_own(config, Place.numbered(number), names)
    )
    layers: list[dict[str, dict[str, Any]]] = [{} for _ in config.blocks]
    for number, names in board.changes():
        if span_of(names) is not None or (not settings.exact and len(names) == 2):
            continue
        rows = board.rows[number, names]
        score = board.mean(number, names, settings.metric)
        entry: dict[str, Any] = {
            "score": score if abs(score) > rounding else 0.0,
            "stderr": board.stderr(number, names, settings.metric),
            "rows": len(rows[settings.metric]),
            "repair": board.repairs[number, names],
        }
        entry |= {figure: board.mean(number, names, figure) for figure in rows}
        if settings.metric != "accuracy":
            entry |= board.by_source(number, names, settings.metric, shares)
        at = Place.numbered(number)
        subblock = "block" if settings.exact else at.half
        layers[at.layer].setdefault(subblock, {})["+".join(names)] = entry
    return layers


def span_scores(board: Scoreboard, metric: str) -> list[dict[str, Any]]:
    """Return what fusing the FFNs of neighbouring layers adds to removing the attention between."""
    return [
        {
            "layers": [span.first, span.last],
            "score": board.mean(number, names, metric),
            "stderr": board.stderr(number, names, metric),
            "repair": board.repairs[number, names],
        }
        for number, names in board.changes()
        if (span := span_of(names)) is not None
    ]


def joint_scores(board: Scoreboard, metric: str) -> list[dict[str, Any]]:
    """Return, for pairs of one layer scored jointly too, their joint score beside the sum."""
    return [
        {
            "layer": Place.numbered(number).layer,
            "names": list(names),
            "joint": board.mean(number, names, metric),
            "sum": sum(
                board.mean(number + k, (name,), metric, rows=len(board.rows[number, names][metric]))
                for k, name in enumerate(names)
            ),
        }
        for number, names in board.changes()
        if len(names) == 2 and (number, names[:1]) in board.rows
    ]


def rows_alone(
    board: Scoreboard, config: ModelConfig, metric: str
) -> list[dict[str, dict[str, Rows]]]:
    """Return every row's figure of what was replaced alone: layer, half, name."""
    layers: list[dict[str, dict[str, Rows]]] = [{} for _ in config.blocks]
    for number, names in board.changes():
        if len(names) == 1 and span_of(names) is None:
            at = Place.numbered(number)
            layers[at.layer].setdefault(at.half, {})[names[0]] = board.rows[number, names][metric]
    return layers


def median_error(board: Scoreboard, settings: ScoreSettings, tokens: int, num_rows: int) -> float:
    """Return the median of the scores' relative standard errors; raise where more was asked.

    An error falls with the root of the text, so what is needed can be said.
    """
    metric = settings.metric
    keys = [key for key in board.rows if span_of(key[1]) is None]
    scores = ((board.mean(*key, metric), board.stderr(*key, metric)) for key in keys)
    errors = sorted(stderr / score for score, stderr in scores if score > 0)
    median = errors[len(errors) // 2] if errors else 0.0
    if settings.max_error and median > settings.max_error:
        needed = int(tokens * (median / settings.max_error) ** 2)
        raise ValueError(
            f"score: the median score is known to {median:.1%} on {tokens} tokens, and max_error "
            f"{settings.max_error:.1%} is asked for; that takes about {needed} tokens: raise "
            f"tokens, and give more held-out text if the corpus has less ({num_rows} rows used)"
        )
    return median


def say_doubts(layers: list[dict[str, dict[str, Any]]]) -> None:
    """Say where a smaller alternative scores better than a larger one by more than noise."""
    doubts = []
    for i, layer in enumerate(layers):
        for entries in layer.values():
            sized = [(n, e) for n, e in entries.items() if n[-1].isdigit() and not {*"+@"} & {*n}]
            for (name, larger), (smaller_name, smaller) in itertools.pairwise(sized):
                noise = (larger["stderr"] ** 2 + smaller["stderr"] ** 2) ** 0.5
                if larger["score"] - smaller["score"] > 3 * noise + 1e-4:
                    doubts.append(f"layer {i}: {smaller_name} before {name}")
    if doubts:
        say(
            f"score: a smaller subblock scores better than a larger one in {len(doubts)} places "
            f"({'; '.join(doubts[:3])}); more repair_tokens may help"
        )
