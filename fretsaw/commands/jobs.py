"""`fretsaw compress` and `fretsaw run`: whole jobs, stage after stage."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from fretsaw.commands.options import Checkpoint, Common, Repeated
from fretsaw.puzzle.settings import EngineName
from fretsaw.stage.workers import HERE, Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """Which stages run, and with what."""

    only: str | None = None
    """Run this stage alone."""
    start_from: str | None = None
    """Begin at this stage."""
    force_from: str | None = None
    """Make this stage and all after it again, whatever is there."""
    set: Repeated = dataclasses.field(default_factory=list)
    """A setting to change, as stage.key=value; may be given again."""
    nproc: int = 1
    """Processes of each stage that trains; short for --launcher "torchrun --nproc-per-node N"."""
    launcher: str = ""
    """What starts the stages that train: a command that runs Python, such as "torchrun
    --nproc-per-node 8" or "srun --nodes 2 torchrun ..."."""
    workers: Workers = HERE
    dry_run: bool = False
    """Print the resolved settings and what would run, as JSON, and do nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Options of `fretsaw compress`."""

    checkpoint: Checkpoint
    """A folder with a Llama-shaped checkpoint, or a Hub id."""
    data: list[str]
    """Text files (.txt, .jsonl, .parquet), a Hub dataset, or `self`: sampled from the model."""
    target: str
    """What the child must reach: "1.5x decode", "2x prefill", "60% memory", "0.7x params", "24GB";
    several joined by commas."""
    scenario: str | None = None
    """What is served; times are measured there. By default 64 rows of 64 tokens in and 64 out."""
    tokens: int = 4_000_000
    """Training text taken from the data at most."""
    heal_tokens: int = 1_000_000
    """Tokens of the child's distillation."""
    candidates: int = 1
    """Children that are healed briefly, before the best of them is healed at length."""
    verify: bool = False
    """Build and measure a few whole children, correct the scores by them, and take the best."""
    bld_tokens: int = 0
    """Train every layer's alternatives on so many tokens before they are scored; 0: only repair."""
    fuse: bool = False
    """Fuse the child's neighbouring FFNs without attention between them, before it is healed."""
    engine: EngineName = "vllm"
    """What will serve the child; what it does not run is not chosen (see `fretsaw export`)."""
    seq_len: int | None = None
    """Tokens of one row of text; by default 256, or the model's context where that is shorter."""
    common: Common
    steering: Steering


def compress(argv: list[str]) -> None:
    """Run `fretsaw compress`."""
    options = tyro.cli(
        CompressOptions,
        args=_spell_out_from(argv),
        prog="fretsaw compress",
        description="Compress a Llama checkpoint to a target; heal, measure and report the child.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    from fretsaw.pipeline.compress import compress_stages

    stages = compress_stages(
        options.checkpoint,
        data=options.data,
        target=options.target,
        scenario=options.scenario,
        device=options.common.device,
        tokens=options.tokens,
        heal_tokens=options.heal_tokens,
        candidates=options.candidates,
        verify=options.verify,
        bld_tokens=options.bld_tokens,
        fuse=options.fuse,
        engine=options.engine,
        seq_len=options.seq_len,
    )
    _run_stages(f"compress {options.checkpoint}", stages, options.common, options.steering)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecipeOptions:
    """Options of `fretsaw run`."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """A shipped recipe's name or a .py file whose recipe() returns the stages."""
    arg: Repeated = dataclasses.field(default_factory=list)
    """An argument of recipe(), as key=value; may be given again."""
    fast: bool = False
    """Short for --arg fast=true: the smaller preset, where the recipe has one."""
    common: Common
    steering: Steering


def run(argv: list[str]) -> None:
    """Run `fretsaw run`."""
    from fretsaw.pipeline.recipe import find_recipe, load_recipe

    options = tyro.cli(
        RunRecipeOptions,
        args=_spell_out_from(argv),
        prog="fretsaw run",
        description="Run a recipe: skip what is done and valid, redo what is stale.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    arguments = ({"fast": True} if options.fast else {}) | read_arguments(options.arg)
    stages = load_recipe(find_recipe(options.recipe), arguments)
    _run_stages(options.recipe, stages, options.common, options.steering)


def read_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read a recipe's arguments: key=value, the value as JSON where it is that."""
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--arg {text}: write key=value")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments


def _run_stages(name: str, stages: list, common: Common, steering: Steering) -> None:
    from fretsaw.pipeline import walk as pipeline

    options = pipeline.RunOptions(
        name=name,
        out=common.out,
        device=common.device,
        dtype=common.dtype,
        seed=common.seed,
        only=steering.only,
        start_from=steering.start_from,
        force_from=steering.force_from,
        workers=steering.workers,
        launcher=steering.launcher or _torchrun(steering.nproc),
    )
    stages = pipeline.apply_overrides(stages, steering.set)
    pipeline.run(stages, options, dry_run=steering.dry_run)


def _torchrun(nproc: int) -> str:
    if nproc < 1:
        raise ValueError(f"--nproc {nproc}: at least one process is needed")
    return f"torchrun --standalone --nproc-per-node {nproc}" if nproc > 1 else ""


def _spell_out_from(argv: list[str]) -> list[str]:
    return ["--start-from" if arg == "--from" else arg for arg in argv]
