"""The score stage: what each alternative costs in quality, one replaced subblock at a time.

Replace-1-block scores (Puzzle, arXiv 2411.19146), attention and FFN apart, each alternative
repaired in closed form first, and the subblocks after it too. Finished subblocks are kept, so a
stopped run goes on where it was.
"""

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.distributed.fanout import fan_out
from fretsaw.distributed.task import MapTasks
from fretsaw.engine.page_memory import free_beside
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.size import block_bytes
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.bld.layer_files import check_trained
from fretsaw.puzzle.library.repair import widest
from fretsaw.puzzle.library.replay import KINDS, flop_bound
from fretsaw.puzzle.library.runs import Group, fused_width
from fretsaw.puzzle.scores.scoreboard import Names, Scoreboard
from fretsaw.puzzle.scores.scorer import Scorer, Task, heldout_rows, span_of
from fretsaw.puzzle.scores.stability import unsettled
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.stage.artifact import write_json
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say

SCORES = "scores.json"
METRICS = {
    "kl": "KL(parent || child), nats a token",
    "lm_loss": "rise of the loss, nats a token",
    "top1": "share of tokens whose likeliest successor changes",
    "accuracy": "accuracy lost on the task",
}
Jobs = dict[int, list[Names]]  # number of a subblock -> what to put from there on


def score(settings: ScoreSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write every alternative's score with its standard error."""
    config = checkpoint.read_config(inputs["parent"])
    num_rows = len(heldout_rows(settings, inputs))
    if "library" in inputs:
        check_trained(inputs["library"], inputs)
    board = Scoreboard(run.resume_folder / "scores.jsonl")
    jobs = all_jobs(config, settings, run.seed)
    if settings.fused > 1 and settings.repair_tokens:
        free = free_beside(config, torch.device(run.device)) / max(1, run.workers.workers)
        jobs = without_wide_spans(jobs, config, widest(free))
    metrics: dict[str, Any] = {"alternatives": sum(map(len, jobs.values()))}

    scorer = partial(Scorer, settings, inputs, run.device, run.seed)
    with fan_out(scorer, run.workers, device=run.device, check=run.check) as map_tasks:
        for first, last in rounds(num_rows, settings.first_tokens // settings.seq_len):
            score_rows(map_tasks, (first, last), jobs, config, board, run)
            metrics["tokens"] = last * settings.seq_len
            if last < num_rows:
                needed, metrics["regret"] = unsettled(
                    _rows_of(board, config, settings),
                    _costs(config, settings, inputs),
                    seed=run.seed,
                )
                if metrics["regret"] <= settings.regret:
                    break
                jobs = {
                    at: [n for n in names if (at // 2, KINDS[at % 2], n[0]) in needed]
                    for at, names in jobs.items()
                }

    metrics["median_error"] = _median_error(board, settings, metrics["tokens"], num_rows)
    layers = _layers(board, config, settings)
    _warn(layers)
    write_json(
        run.folder / SCORES,
        {
            "metric": METRICS[settings.metric],
            "tokens": metrics["tokens"],
            "layers": layers,
            "joint": _joint(board, settings.metric),
            **({"spans": spans} if (spans := _spans(board, settings.metric)) else {}),
        },
    )
    own = [(at, n) for at, names in jobs.items() for n in names if span_of(n) is None]
    candidates = [(at // 2, KINDS[at % 2]) for at, _ in own]
    return metrics | {"replay_flop_bound": flop_bound(config, settings.seq_len, candidates)}


def all_jobs(config: ModelConfig, settings: ScoreSettings, seed: int) -> Jobs:
    """Return what is scored: every alternative alone and a few pairs, or every pair of a layer."""
    jobs: Jobs = {}
    for i, block in enumerate(config.blocks):
        attention, ffn = layer_alternatives(block, settings.space)
        pairs = [(a, f) for a in attention for f in ffn]
        if settings.exact:
            jobs[2 * i] = list(pairs)
            continue
        changed = [(a, f) for a, f in pairs if a != attention[0] and f != ffn[0]]
        count = min(settings.joint_pairs, len(changed))
        sampled = random.Random(f"{seed} {i}").sample(changed, count)
        jobs[2 * i] = [*((a,) for a in attention), *sampled]
        jobs[2 * i + 1] = [(f,) for f in ffn]
        jobs[2 * i + 1] += [(str(span),) for span in spans_from(config, i, settings.fused)]
    return jobs


def spans_from(config: ModelConfig, first: int, most: int) -> list[Group]:
    """Return the groups of up to `most` layers from `first` on that have an FFN to fuse each."""
    found = []
    for last in range(first, min(first + most, config.num_hidden_layers)):
        if config.blocks[last].ffn != "swiglu":
            break
        found.append(Group(first, last))
    return found[1:]


def without_wide_spans(jobs: Jobs, config: ModelConfig, most: int) -> Jobs:
    """Leave out, and say so, spans whose fused FFN is too wide to be repaired in memory."""

    def width(names: Names) -> int:
        span = span_of(names)
        return fused_width(config.blocks, span) if span else 0

    kept = {at: [n for n in names if width(n) <= most] for at, names in jobs.items()}
    num_left_out = sum(map(len, jobs.values())) - sum(map(len, kept.values()))
    if num_left_out:
        say(
            f"score: {num_left_out} spans are left out: to repair an FFN more than {most} wide "
            "takes more memory than is free"
        )
    return kept


def rounds(num_rows: int, first: int) -> Iterator[tuple[int, int]]:
    """Yield the rows of each round: the first few, then as many again as there are already."""
    start, stop = 0, min(first, num_rows) or num_rows
    while start < num_rows:
        yield start, stop
        start, stop = stop, min(2 * stop, num_rows)


def score_rows(
    map_tasks: MapTasks,
    rows: tuple[int, int],
    jobs: Jobs,
    config: ModelConfig,
    board: Scoreboard,
    run: StageRun,
) -> None:
    """Have all `jobs` scored on `rows` (first and last) of the text, and put them on the board."""
    open_jobs = {at: names for at, names in jobs.items() if not board.has(rows[0], at)}
    tasks = [Task(rows, at, names) for at, several in open_jobs.items() for names in several]
    total = sum(map(len, jobs.values()))
    num_done = total - len(tasks)
    run.progress.start("scoring", total, step=num_done, unit="alternative")
    found: dict[int, dict[Names, dict]] = {at: {} for at in open_jobs}
    for index, entry in map_tasks(tasks):
        task, num_done = tasks[index], num_done + 1
        found[task.at][task.names] = entry
        _check_own(config, task, entry)
        if len(found[task.at]) == len(open_jobs[task.at]):
            in_order = {names: found[task.at][names] for names in open_jobs[task.at]}
            board.add(rows[0], task.at, in_order)
        run.step(num_done, {"kl": _mean(entry["figures"]["kl"])}, row=False)


def _check_own(config: ModelConfig, task: Task, entry: Mapping[str, Any]) -> None:
    """Sorting and slicing are wrong where the parent's own subblock moves anything at all."""
    own = names_of(config.blocks[task.at // 2])
    if task.names in ((own[task.at % 2],), own):
        kl = _mean(entry["figures"]["kl"])
        assert kl == 0, (
            f"layer {task.at // 2}: the parent's own {' '.join(task.names)} scores {kl}, not 0"
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- what is written ------------------------------------------------------------------------------


def _layers(board: Scoreboard, config: ModelConfig, settings: ScoreSettings) -> list[dict]:
    """Return the scores of every layer: by subblock, or of whole blocks where `exact`."""
    layers: list[dict[str, dict[str, Any]]] = [{} for _ in config.blocks]
    for at, names in board.changes():
        if span_of(names) is not None or (not settings.exact and len(names) == 2):
            continue
        kind = "block" if settings.exact else KINDS[at % 2]
        entry: dict[str, Any] = {
            "score": board.mean(at, names, settings.metric),
            "stderr": board.stderr(at, names, settings.metric),
            "rows": len(board.rows[at, names][settings.metric]),
            "repair": board.repairs[at, names],
        }
        entry |= {metric: board.mean(at, names, metric) for metric in board.rows[at, names]}
        layers[at // 2].setdefault(kind, {})["+".join(names)] = entry
    return layers


def _spans(board: Scoreboard, metric: str) -> list[dict[str, Any]]:
    """Return what fusing the FFNs of neighbouring layers adds to removing the attention between."""
    spans = [(span_of(names), at, names) for at, names in board.changes()]
    return [
        {
            "layers": [span.first, span.last],
            "score": board.mean(at, names, metric),
            "stderr": board.stderr(at, names, metric),
            "repair": board.repairs[at, names],
        }
        for span, at, names in spans
        if span is not None
    ]


def _joint(board: Scoreboard, metric: str) -> list[dict[str, Any]]:
    """Return, for pairs of one layer scored jointly too, their joint score beside the sum."""
    return [
        {
            "layer": at // 2,
            "names": list(names),
            "joint": board.mean(at, names, metric),
            "sum": sum(
                board.mean(at + k, (name,), metric, rows=len(board.rows[at, names][metric]))
                for k, name in enumerate(names)
            ),
        }
        for at, names in board.changes()
        if len(names) == 2 and (at, names[:1]) in board.rows
    ]


def _median_error(board: Scoreboard, settings: ScoreSettings, tokens: int, num_rows: int) -> float:
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


def _warn(layers: list[dict]) -> None:
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


# --- for the adaptive rounds ----------------------------------------------------------------------


def _rows_of(board: Scoreboard, config: ModelConfig, settings: ScoreSettings) -> list[dict]:
    layers: list[dict[str, dict[str, Any]]] = [{} for _ in config.blocks]
    for at, names in board.changes():
        if len(names) == 1:
            entries = layers[at // 2].setdefault(KINDS[at % 2], {})
            entries[names[0]] = board.rows[at, names][settings.metric]
    return layers


def _costs(
    config: ModelConfig, settings: ScoreSettings, inputs: Mapping[str, Path]
) -> dict[str, float]:
    """Return a cost by name: measured decode time where there is a table, else bytes."""
    if "costs" in inputs:
        table = json.loads((inputs["costs"] / "costs.json").read_text())
        return {name: entry["decode_ms"] for name, entry in table["alternatives"].items()}
    costs = {}
    for block in config.blocks:
        attention, ffn = layer_alternatives(block, settings.space)
        costs |= {
            a: block_bytes(config, BlockConfig.from_names(a, "ffn_none")).attention
            for a in attention
        }
        costs |= {f: block_bytes(config, BlockConfig.from_names("attn_none", f)).ffn for f in ffn}
    return costs
