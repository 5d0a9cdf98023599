"""What whole children take: assembled, measured, chosen among."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.pipeline.recipe import Stage, inputs_of
from fretsaw.plan.amounts import (
    DISK_BYTES_PER_S,
    frontier_bytes,
    gram_flops,
    judging_bytes,
    judging_flops,
    logit_bytes,
    refit_bytes,
    replay_flops,
    saved_bytes,
    token_flops,
    weight_bytes,
)
from fretsaw.plan.stage_plan import Networks, Recipe, StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work
from fretsaw.puzzle.search.solutions import SOLUTIONS
from fretsaw.puzzle.settings import AssembleSettings, VerifySettings
from fretsaw.stage.artifact import read_output


def assembling_flops(
    parent: ModelConfig, child: ModelConfig, tokens: float, seq_len: int, *, is_replayed: bool
) -> float:
    """FLOPs of sequential repair, parent and child side by side, each refit judged twice.

    Where the judge does not replay, what its gradients take comes once, whatever is assembled.
    """
    both = token_flops(parent, seq_len) + token_flops(child, seq_len)
    judged = 2 * tokens / 8 * token_flops(child, seq_len)
    if is_replayed:
        judged = 2 * 2 * tokens / 8 * replay_flops(parent, seq_len)
    return tokens * both + gram_flops(child, tokens) + judged


def assemble(s: AssembleSettings, at: Shapes, on: Hardware) -> Work:
    """Sequential repair, then one child saved."""
    parent, child = at["parent"], at["search"]
    moved_s = (weight_bytes(parent) + weight_bytes(child)) / DISK_BYTES_PER_S
    fitted, is_replayed = s.tokens if s.repair else 0, s.judge == "replay"
    flops = assembling_flops(parent, child, fitted, s.seq_len, is_replayed=is_replayed)
    gradients = 0.0
    if fitted and not is_replayed:
        flops += judging_flops(parent, fitted, s.seq_len)
        gradients = judging_bytes(parent, fitted, s.seq_len)
    return Work(
        uses=(
            MemoryUse(
                "",
                weight_bytes(parent, child),
                2 * frontier_bytes(parent, s.tokens) + refit_bytes(parent),
            ),
        ),
        tokens=s.tokens,
        seconds=on.alone.seconds(flops) + moved_s,
        disk=saved_bytes(child, on) + gradients,
        remedy="lower tokens",
    )


def verify(s: VerifySettings, at: Shapes, on: Hardware) -> Work:
    """Whole children assembled and measured."""
    parent, child = at["parent"], at["search"]
    is_replayed = s.judge == "replay"
    flops = assembling_flops(parent, child, s.repair_tokens, s.seq_len, is_replayed=is_replayed)
    flops += s.tokens * (token_flops(parent, s.seq_len) + token_flops(child, s.seq_len))
    children = s.children + s.rounds
    once = 0.0 if is_replayed else judging_flops(parent, s.repair_tokens, s.seq_len)
    gradients = 0.0 if is_replayed else judging_bytes(parent, s.repair_tokens, s.seq_len)
    frontier = 2 * frontier_bytes(parent, s.repair_tokens + s.tokens)
    return Work(
        uses=(
            MemoryUse(
                "",
                weight_bytes(parent, child),
                frontier + refit_bytes(parent),
                logits=logit_bytes(parent),
            ),
        ),
        tokens=children * (s.tokens + s.repair_tokens),
        seconds=on.alone.seconds(children * flops + once),
        disk=2000.0 * parent.num_hidden_layers + gradients,
    )


def select(s: Any, at: Shapes, on: Hardware) -> Work:
    """The best of the candidates is copied."""
    saved = 2 * saved_bytes(at["child"], on)
    return Work(seconds=saved / DISK_BYTES_PER_S, disk=saved)


def found_child(parent: ModelConfig, search: Path, number: int) -> ModelConfig:
    """Return a child of a finished search, counted from the best."""
    if not (search / SOLUTIONS).is_file():
        raise ValueError(f"plan: {search} holds no {SOLUTIONS}; give the folder of a search")
    solutions = read_output(search, SOLUTIONS, [{"choices": list}])
    if not 0 <= number < len(solutions):
        raise ValueError(f"plan: {search} has {len(solutions)} solutions; number {number} is none")
    choices = solutions[number]["choices"]
    blocks = blocks_from_names((attention, ffn) for attention, ffn in choices)
    return replace(parent, blocks=blocks).in_full


def finished_search(
    stage: Stage, networks: Networks, recipe: Recipe
) -> tuple[str, ModelConfig] | None:
    """Return the child of a search that stands on disk; of one in the recipe it is known."""
    if "search" in networks:
        return None
    number = getattr(stage.settings, "solution", 0)
    return "search", found_child(networks["parent"], Path(str(stage.inputs["search"])), number)


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> AssembleSettings:
    """Return the settings of two rows a step."""
    return replace(stage.settings, solution=0, tokens=2 * steps * stage.settings.seq_len)


def as_its(name: str) -> Callable[[Stage, Shapes, dict[str, Path]], None]:
    """Return what lets an input stand for the stage."""

    def stand_in(stage: Stage, at: Shapes, made: dict[str, Path]) -> None:
        value = dict(inputs_of(stage))[name]
        made[stage.name] = made.get(value, Path(value))

    return stand_in


ASSEMBLE = StagePlan(work=assemble, fewer=fewer, network=finished_search)
VERIFY = StagePlan(work=verify, stand_in=as_its("search"), network=finished_search)
SELECT = StagePlan(work=select, stand_in=as_its("assembled"))
