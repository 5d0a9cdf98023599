"""The score stage: what each alternative costs in quality, one replaced subblock at a time.

Replace-1-block scores (Puzzle, arXiv 2411.19146), attention and FFN apart, each alternative
repaired in closed form first, and the subblocks after it too. Finished subblocks are kept, so a
stopped run goes on where it was.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data.by_source import source_shares
from fretsaw.distributed.fanout import fan_out
from fretsaw.distributed.task import MapTasks
from fretsaw.engine.page_memory import free_beside
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.place import Place
from fretsaw.model.size import block_bytes
from fretsaw.puzzle.bld.layer_files import check_trained
from fretsaw.puzzle.library.repair import widest
from fretsaw.puzzle.library.replay import flop_bound
from fretsaw.puzzle.scores.replacements import (
    GradientPart,
    Replacement,
    all_jobs,
    rounds,
    span_of,
    without_wide_spans,
)
from fretsaw.puzzle.scores.score_table import (
    is_own,
    joint_scores,
    layer_scores,
    median_error,
    rows_alone,
    say_doubts,
    span_scores,
)
from fretsaw.puzzle.scores.scoreboard import Names, Scoreboard
from fretsaw.puzzle.scores.scorer import (
    Scorer,
    gradient_parts,
    heldout_rows,
    is_estimated,
)
from fretsaw.puzzle.scores.screening import anchors, bring_to_scale
from fretsaw.puzzle.scores.stability import answered, unsettled
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.stage.artifact import read_output
from fretsaw.stage.execute import StageRun
from fretsaw.stage.whole import write_json

SCORES = "scores.json"
OWN_KL = 1e-4
"""The parent's own subblock may score so much: it is computed in other batch shapes than the
target, and a BLAS may round each differently. A channel in the wrong place moves far more."""
METRICS = {
    "kl": "KL(parent || child), nats a token",
    "lm_loss": "rise of the loss, nats a token",
    "top1": "share of tokens whose likeliest successor changes",
    "accuracy": "accuracy lost on the task",
}


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

    gradients = run.resume_folder / "gradients"
    scorer = partial(Scorer, settings, inputs, run.device, run.seed, gradients)
    with fan_out(scorer, run.workers, device=run.device, check=run.check) as map_tasks:
        write_gradients(map_tasks, gradient_parts(settings, inputs, config, gradients), run)
        for first, last in rounds(num_rows, settings.first_tokens // settings.seq_len):
            tasks = [
                Replacement((first, last), at, names, is_estimated(names, settings))
                for at, several in jobs.items()
                for names in several
            ]
            do_all(map_tasks, tasks, first, config, board, run)
            metrics["tokens"] = last * settings.seq_len
            if last < num_rows:
                alone = rows_alone(board, config, settings.metric)
                costs = costs_by_name(config, settings, inputs)
                needed, metrics["regret"] = unsettled(alone, costs, seed=run.seed)
                if metrics["regret"] <= settings.regret:
                    break
                jobs = {
                    at: [n for n in names if (at, n[0]) in needed] for at, names in jobs.items()
                }
        if settings.scores_by_estimate:
            costs = costs_by_name(config, settings, inputs)
            replay_what_counts(map_tasks, (0, num_rows), config, costs, board, run)
            metrics["replayed"] = sum(map(board.is_replayed, board.rows))

    metrics["median_error"] = median_error(board, settings, metrics["tokens"], num_rows)
    shares = source_shares(inputs["corpus"], settings.seq_len, num_rows)
    layers = layer_scores(board, config, settings, shares)
    say_doubts(layers)
    write_json(
        run.folder / SCORES,
        {
            "metric": METRICS[settings.metric],
            "tokens": metrics["tokens"],
            "layers": layers,
            "joint": joint_scores(board, settings.metric),
            **({"spans": spans} if (spans := span_scores(board, settings.metric)) else {}),
        },
    )
    starts = [at for at, names in jobs.items() for n in names if span_of(n) is None]
    return metrics | {"replay_flop_bound": flop_bound(config, settings.seq_len, starts)}


def write_gradients(map_tasks: MapTasks, parts: Sequence[GradientPart], run: StageRun) -> None:
    """Have the gradients written that estimates rest on; those that are there stay."""
    if parts:
        run.progress.start("differentiating", len(parts), unit="part")
    for num_done, _ in enumerate(map_tasks(parts), start=1):
        run.step(num_done, row=False)


def do_all(
    map_tasks: MapTasks,
    tasks: Sequence[Replacement],
    turn: int,
    config: ModelConfig,
    board: Scoreboard,
    run: StageRun,
) -> None:
    """Have alternatives scored, and put them on the board, all of a place at once.

    Places that are on the board for this `turn` are left out.
    """
    wanted = [task for task in tasks if not board.has(turn, task.at.number)]
    num_done = len(tasks) - len(wanted)
    run.progress.start("scoring", len(tasks), step=num_done, unit="alternative")
    names_at: dict[Place, list[Names]] = {}
    for task in wanted:
        names_at.setdefault(task.at, []).append(task.names)
    found: dict[Place, dict[Names, dict]] = {at: {} for at in names_at}
    for index, entry in map_tasks(wanted):
        done, num_done = wanted[index], num_done + 1
        found[done.at][done.names] = entry
        kl = _mean(entry["figures"].get("kl") or entry["figures"]["estimate"])
        _check_own(config, done, kl)
        if len(found[done.at]) == len(names_at[done.at]):
            board.add(turn, done.at.number, {n: found[done.at][n] for n in names_at[done.at]})
        run.step(num_done, {"kl": kl}, row=False)


def replay_what_counts(
    map_tasks: MapTasks,
    rows: tuple[int, int],
    config: ModelConfig,
    costs: Mapping[str, float],
    board: Scoreboard,
    run: StageRun,
) -> None:
    """Have a few replayed for the scale, then what the search answers with, until it is settled."""
    for turn in count():
        bring_to_scale(board)
        if turn == 0:
            keys = anchors(board)
        else:
            found = answered(rows_alone(board, config, "kl"), costs)
            keys = sorted((at.number, (name,)) for at, name in found)
        tasks = [
            Replacement(rows, Place.numbered(number), names)
            for number, names in keys
            if not board.is_replayed((number, names))
            and not is_own(config, Place.numbered(number), names)
        ]
        if turn and not tasks:
            return
        replays = Scoreboard(run.resume_folder / f"replays-{turn}.jsonl")
        do_all(map_tasks, tasks, rows[0], config, replays, run)
        board.adopt(replays)


def _check_own(config: ModelConfig, done: Replacement, kl: float) -> None:
    """Sorting and slicing are wrong where the parent's own subblock moves anything at all."""
    if is_own(config, done.at, done.names):
        assert abs(kl) <= OWN_KL, (
            f"layer {done.at.layer}: the parent's own {' '.join(done.names)} scores {kl}, not 0"
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def costs_by_name(
    config: ModelConfig, settings: ScoreSettings, inputs: Mapping[str, Path]
) -> dict[str, float]:
    """Return a cost by name: measured decode time where there is a table, else bytes."""
    if "costs" in inputs:
        table = read_output(inputs["costs"], "costs.json", {"alternatives": dict})
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
