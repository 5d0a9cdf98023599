"""A recipe is a list of stages; a stage is a name, settings, and inputs by the names of others.

Standard library only.
"""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fretsaw.bench.settings import BenchSettings
from fretsaw.distill.settings import DistillSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.kinds import STAGES
from fretsaw.puzzle.settings import (
    AssembleSettings,
    BldSettings,
    CostSettings,
    FuseSettings,
    RankSettings,
    ScoreSettings,
    SearchSettings,
    SelectSettings,
    VerifySettings,
)
from fretsaw.report.settings import ReportSettings
from fretsaw.rl.settings import RlSettings
from fretsaw.scenario.scenario import parse_scenarios
from fretsaw.sft.settings import SftSettings

ALPHA = 0.8  # share of layers that candidates have in common at most, as in the paper
POOL = ("greedy", "max_params")  # other searches that give one candidate each


@dataclass(frozen=True)
class Stage:
    """One step of a recipe. `name` is its folder; inputs name earlier stages, or are paths.

    `launcher` is the command that runs Python on it, such as "torchrun --nproc-per-node 8".
    """

    name: str
    settings: Any
    inputs: dict[str, str | Path | list[str | Path]] = field(default_factory=dict)
    launcher: str = "python"

    @property
    def kind(self) -> str:
        """The command this stage runs, told by the type of its settings."""
        for name, kind in STAGES.items():
            if kind.settings is type(self.settings):
                return name
        raise ValueError(f"stage {self.name!r}: {type(self.settings).__name__} belongs to no stage")


def slug(text: str) -> str:
    """Return a folder name for a target: "1.5x decode, 24GB" -> "1.5x-decode-24GB"."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "pct")).strip("-")


def compression(
    *,
    parent: str | Path,
    target: str,
    scenario: str,
    corpus: str = "corpus",
    under: str = "",
    rank: RankSettings | None = None,
    bld: BldSettings | None = None,
    score: ScoreSettings | None = None,
    cost: CostSettings | None = None,
    search: SearchSettings | None = None,
    verify: VerifySettings | None = None,
    assemble: AssembleSettings | None = None,
    distill: DistillSettings | None = None,
    evaluate: EvalSettings | None = None,
    bench: BenchSettings | None = None,
    in_8_bits: Sequence[Literal["fp8", "int8"]] = ("fp8", "int8"),
    candidates: int = 1,
    brief: DistillSettings | None = None,
    fuse: FuseSettings | None = None,
) -> list[Stage]:
    """Return the Puzzle path from a parent and a corpus to a healed, measured, reported child.

    The first three stages depend on the parent alone; the others stand in a folder of the target's
    own, so that a second target adds a folder and reruns nothing before the search. With `bld`
    the alternatives are trained before they are scored. With several `candidates` that many
    solutions, two of other searches among them, are assembled, each is healed as `brief` says (by
    default a tenth of the tokens), and the best of them is healed at length from its assembled
    weights. Of several scenarios, which
    are costed together, the first is the one that is benched. With `verify` whole children correct
    the search and stand in its place. With `fuse` the assembled child's neighbouring FFNs are
    fused before it is healed; where the scores have spans (`score.fused`), the search says which.
    The parent is evaluated on text in each precision `in_8_bits` too, to stand beside the child.
    """
    if candidates < 1:
        raise ValueError(f"candidates {candidates}: give at least 1")
    fused = score.fused if score else 0
    is_joint = fused > 1
    if is_joint and (candidates > 1 or verify):
        raise ValueError(
            f"fused {fused}: the search says what is fused of its one child; leave out "
            "candidates and verify"
        )
    fuse = fuse or (FuseSettings() if is_joint else None)
    at = under or slug(target)
    search = replace(search or SearchSettings(), target=target)
    distill = distill or DistillSettings()
    assemble = assemble or AssembleSettings()
    assembled = {f"{at}/assemble": assemble}
    if candidates > 1:
        pool = search.pool or POOL[: candidates - 1]
        alpha = min(search.alpha, ALPHA)
        search = replace(search, num_solutions=candidates, alpha=alpha, pool=pool)
        assembled = {f"{at}/assemble{i}": replace(assemble, solution=i) for i in range(candidates)}
    start = f"{at}/select" if candidates > 1 else f"{at}/assemble"
    healed = f"{at}/fuse" if fuse else start  # what is healed at length
    ranked = {"parent": parent, "corpus": corpus, "ranking": "rank"}
    library = {"library": "bld"} if bld else {}
    found = f"{at}/verify" if verify else f"{at}/search"
    told = {"search": found} if is_joint else {}  # what is fused
    evaluate = evaluate or EvalSettings()
    quantised = {f"parent-{p}": replace(evaluate, weights=p, task="") for p in in_8_bits}
    first = scenario if "/" not in scenario else str(parse_scenarios(scenario)[0])
    return [
        Stage("rank", rank or RankSettings(), {"parent": parent, "corpus": corpus}),
        *([Stage("bld", bld, {**ranked})] if bld else []),
        Stage("score", score or ScoreSettings(), {**ranked, **library}),
        Stage("cost", cost or CostSettings(scenario=scenario), {"parent": parent}),
        Stage(f"{at}/search", search, {"scores": "score", "costs": "cost"}),
        *(
            [Stage(found, verify, {**ranked, **library, "search": f"{at}/search"})]
            if verify
            else []
        ),
        *(
            Stage(name, settings, {**ranked, "search": found, **library})
            for name, settings in assembled.items()
        ),
        *_selection(at, parent, corpus, list(assembled), brief or _brief(distill)),
        *([Stage(healed, fuse, {"model": start, "corpus": corpus, **told})] if fuse else []),
        Stage(
            f"{at}/distill",
            distill,
            {"child": healed, "parent": parent, "corpus": corpus},
        ),
        Stage(
            f"{at}/eval",
            evaluate,
            {"model": f"{at}/distill", "parent": parent, "corpus": corpus},
        ),
        *(
            Stage(name, settings, {"model": parent, "parent": parent, "corpus": corpus})
            for name, settings in quantised.items()
        ),
        Stage(
            f"{at}/bench",
            bench or BenchSettings(scenario=first),
            {"parent": parent, "child": f"{at}/distill", "search": found},
        ),
        Stage(
            f"{at}/report",
            ReportSettings(),
            {
                "parent": parent,
                "ranking": "rank",
                "scores": "score",
                "costs": "cost",
                "search": found,
                "assembled": start,
                "child": f"{at}/distill",
                "eval": f"{at}/eval",
                "bench": f"{at}/bench",
                **library,
                **({"quantised": [*quantised]} if quantised else {}),
                **({"fused": healed} if fuse else {}),
            },
        ),
    ]


def _brief(distill: DistillSettings) -> DistillSettings:
    """Return a healing of a tenth of the tokens."""
    train = distill.train
    return replace(
        distill, train=replace(train, tokens=max(train.tokens // 10, train.batch_tokens))
    )


def _selection(
    at: str, parent: str | Path, corpus: str, assembled: list[str], brief: DistillSettings
) -> list[Stage]:
    """Return the stages that heal each candidate briefly and choose one; none for a single one."""
    if len(assembled) == 1:
        return []
    healed = [f"{at}/brief{i}" for i in range(len(assembled))]
    return [
        *(
            Stage(name, brief, {"child": start, "parent": parent, "corpus": corpus})
            for name, start in zip(healed, assembled, strict=True)
        ),
        Stage(
            f"{at}/select",
            SelectSettings(figure="heldout_kl" if brief.needs_teacher else "heldout_loss"),
            {"child": [*healed], "assembled": [*assembled]},
        ),
    ]


def reasoning(
    stages: Sequence[Stage],
    *,
    target: str,
    tune: SftSettings,
    reinforce: RlSettings,
    evaluate: EvalSettings,
    data: Sequence[str | Path] = (),
) -> list[Stage]:
    """Return a compression's stages with those that make its child reason on demand.

    The child is tuned, reinforced, and evaluated after each; the one report tells all of it.
    """
    at = slug(target)
    *before, report = stages
    files = {"data": list(data)} if data else {}
    more = {
        "tuned": f"{at}/sft",
        "tuned_eval": f"{at}/sft-eval",
        "reasoner": f"{at}/rl",
        "reasoner_eval": f"{at}/rl-eval",
    }
    return [
        *before,
        Stage(f"{at}/sft", tune, {"model": f"{at}/distill", **files}),
        Stage(f"{at}/sft-eval", evaluate, {"model": f"{at}/sft"}),
        Stage(f"{at}/rl", reinforce, {"model": f"{at}/sft"}),
        Stage(f"{at}/rl-eval", evaluate, {"model": f"{at}/rl"}),
        Stage(report.name, report.settings, {**report.inputs, **more}),
    ]


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes of this package by name."""
    here = Path(__file__).parents[1]
    folders = [folder for folder in (here / "recipes", here.parent / "recipes") if folder.is_dir()]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a shipped recipe (by name) or of the user's own (by path)."""
    path = Path(name_or_path)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"{path}: no such recipe file")
        return path
    shipped = shipped_recipes()
    if name_or_path not in shipped:
        raise ValueError(
            f"{name_or_path!r}: no such recipe; shipped: {', '.join(shipped)}; or give a .py file"
        )
    return shipped[name_or_path]


def is_recipe(name_or_path: str) -> bool:
    """Say whether this is a recipe, shipped or a .py file, and no checkpoint."""
    return name_or_path.endswith(".py") or name_or_path in shipped_recipes()


def needed_arguments(path: Path) -> list[str]:
    """Return the arguments without which a recipe can't be made."""
    function = getattr(_module(path), "recipe", None)
    accepted = inspect.signature(function).parameters.values() if function else ()
    return [one.name for one in accepted if one.default is one.empty]


def published_of(name_or_path: str) -> Any:
    """Return what a recipe says of a published model, None where it is no such recipe's name."""
    if not is_recipe(name_or_path):
        return None
    return getattr(_module(find_recipe(name_or_path)), "PUBLISHED", None)


def load_recipe(path: Path, arguments: dict[str, Any]) -> list[Stage]:
    """Run the file's `recipe()`, with the arguments it takes (such as fast=True)."""
    module = _module(path)
    if not hasattr(module, "recipe"):
        raise ValueError(f"{path}: defines no recipe(); it returns the list of stages")
    accepted = inspect.signature(module.recipe).parameters
    unknown = [name for name in arguments if name not in accepted]
    needed = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if unknown or needed:
        wrong = f"takes no {unknown[0]!r}" if unknown else f"needs {needed[0]!r}"
        raise ValueError(
            f"{path}: its recipe() {wrong}; give --arg NAME=VALUE for {', '.join(accepted)}"
        )
    return module.recipe(**arguments)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
