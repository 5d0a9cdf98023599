"""Which groups of FFNs there are to fuse: those that were given, or all that can be and fit."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.subblock import names_of
from fretsaw.puzzle.library.runs import Group, check_groups, find_runs, fused_shape
from fretsaw.puzzle.search.solutions import read_solutions
from fretsaw.puzzle.settings import FuseSettings
from fretsaw.scenario.memory import gram_bytes
from fretsaw.stage.progress import say

NO_RUNS = (
    "no two FFNs follow each other without an attention between; `fretsaw compress` removes "
    "attention where that pays"
)


def groups_to_score(
    config: ModelConfig,
    served: ModelConfig,
    settings: FuseSettings,
    most: int,
    search: Path | None,
) -> tuple[list[Group], bool]:
    """Return the groups that can be fused and repaired, and whether there is a choice among them.

    `most` is the width that memory allows to repair; a `search` says what is fused of its child.
    """
    if search is not None:
        settings = as_searched(settings, search, served)
    groups, is_open = candidates(config, settings)
    if search is not None and not settings.groups:
        groups, is_open = [], False
    return repairable(config.blocks, groups, settings, most, is_open=is_open), is_open


def as_searched(settings: FuseSettings, search: Path, config: ModelConfig) -> FuseSettings:
    """Return the settings with the groups that a search fuses of this child of it.

    Raises `ValueError` where the model is none of its solutions.
    """
    if settings.target or settings.groups or settings.rule == "paper":
        raise ValueError(
            "fuse: a search says what is fused; leave out target, groups and the paper's rule"
        )
    own = [list(names_of(block)) for block in config.blocks]
    for solution in read_solutions(search):
        if solution["choices"] == own:
            return replace(settings, groups=tuple(solution.get("fused", ())))
    raise ValueError(
        f"fuse: the model is none of the solutions of {search}; give the search that it was "
        "assembled from, or leave it out"
    )


def candidates(config: ModelConfig, settings: FuseSettings) -> tuple[list[Group], bool]:
    """Return the groups to score, and whether there is a choice among them to make.

    Raises `ValueError` where nothing can be fused, or not what was asked for.
    """
    blocks = config.blocks
    runs = find_runs(blocks)
    if settings.groups:
        groups = sorted(Group.parse(text) for text in settings.groups)
        check_groups(blocks, groups)
    elif not runs and settings.target:
        raise ValueError(f"fuse: target {settings.target} is out of reach; {NO_RUNS}")
    elif not runs:
        return [], True
    elif settings.rule == "paper":
        groups = by_the_papers_rule(blocks, runs, settings.max_width)
        if not groups:
            return [], False
    else:
        groups = [
            Group(first, last) for run in runs for first, last in itertools.combinations(run, 2)
        ]
    fitting = [g for g in groups if _fits(blocks, g, settings.max_width)]
    if not fitting or (settings.groups and len(fitting) < len(groups)):
        widths = {fused_shape(blocks, g).intermediate_size for g in groups}
        needed = max(widths) if settings.groups else min(widths)
        raise ValueError(
            f"fuse: max_width {settings.max_width}, but "
            f"{'groups given are' if settings.groups else 'the narrowest group is'} {needed} wide; "
            "raise it to that at least"
        )
    return fitting, not settings.groups and settings.rule == "exact"


def by_the_papers_rule(
    blocks: Sequence[BlockConfig], runs: Sequence[Sequence[int]], max_width: int
) -> list[Group]:
    """Return each run but for its last FFN, the most sensitive, in as few groups as fit."""
    groups = []
    for run in runs:
        open_group: list[int] = []
        for i in run[:-1]:
            width = sum(blocks[k].intermediate_size for k in [*open_group, i])
            if max_width and width > max_width and open_group:
                groups.append(open_group)
                open_group = []
            open_group.append(i)
        groups.append(open_group)
    return [Group(group[0], group[-1]) for group in groups if len(group) > 1]


def _fits(blocks: Sequence[BlockConfig], group: Group, max_width: int) -> bool:
    return not max_width or fused_shape(blocks, group).intermediate_size <= max_width


def repairable(
    blocks: Sequence[BlockConfig],
    groups: Sequence[Group],
    settings: FuseSettings,
    most: int,
    *,
    is_open: bool,
) -> list[Group]:
    """Return the groups that can be repaired, where memory allows a width of `most`.

    Where there is a choice, wider ones are left out, and that is said. Raises `ValueError` where
    there is none, or none is left.
    """
    if not settings.repair_tokens:
        return list(groups)
    widths = {group: fused_shape(blocks, group).intermediate_size for group in groups}
    fitting = [group for group in groups if widths[group] <= most]
    if fitting and is_open and len(fitting) < len(groups):
        say(
            f"fuse: {len(groups) - len(fitting)} of {len(groups)} groups are left out: to repair "
            f"an FFN more than {most} wide takes more memory than is free"
        )
    elif len(fitting) < len(groups):
        shown = (min if is_open else max)(widths.values())
        raise ValueError(
            f"fuse: repairing an FFN {shown} wide takes {gram_bytes(shown) / 2**30:.1f} GiB, more "
            f"than is free; set max_width to {most} or less, or repair_tokens to 0"
        )
    return fitting
