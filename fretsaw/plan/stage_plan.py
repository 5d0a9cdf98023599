"""What is known of a kind of stage before it runs: its work, and less of the same to rehearse.

One object a kind of stage, in `stages/`; the row in `pipeline/kinds.py` names it. No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.model.config import ModelConfig
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.work import Hardware, Shapes, Work

NEVER = 10**9  # steps, or seconds, between what a rehearsal does without


@dataclass(frozen=True)
class Recipe:
    """The stages around one whose network is asked for, and what is known of them so far."""

    hardware: Hardware
    config_of: Callable[[str], ModelConfig]  # of a checkpoint that no stage makes
    stage_of: Callable[[str], Stage]  # by an input's value: of the recipe, or of a finished folder
    shapes: Mapping[str, Shapes]  # of the stages before


Networks = dict[str, ModelConfig]  # by input
OwnNetwork = Callable[[Stage, Networks, Recipe], tuple[str, ModelConfig] | None]


def no_network(stage: Stage, networks: Networks, recipe: Recipe) -> None:
    """Return that nothing new comes of a stage: no network, or one shaped as an input's."""


def nothing_beside(stage: Stage, at: Shapes, made: dict[str, Path]) -> None:
    """Leave a stage that is rehearsed without a stand-in."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A kind of stage foreseen; `fewer` is None where two steps of it are not rehearsed."""

    work: Callable[[Any, Shapes, Hardware], Work]  # from its settings
    fewer: Callable[[Stage, Sequence[Stage], int], Any] | None = None
    """Its settings with only so many steps of its work, given the recipe's stages."""
    stand_in: Callable[[Stage, Shapes, dict[str, Path]], None] = nothing_beside
    """Puts in its place what later stages read of it, where it is not rehearsed."""
    left_out: frozenset[str] = frozenset()
    """Inputs that a rehearsal goes without: they are of other spaces."""
    is_told: Callable[[Any], bool] = lambda settings: True
    """Whether what was rehearsed of such settings is what is foreseen."""
    network: OwnNetwork = no_network
    """The network it makes of none of its inputs' shapes, under the name its `work` knows it by."""
