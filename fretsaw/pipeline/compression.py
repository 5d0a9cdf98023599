"""A compression as stages of a recipe: the Puzzle path to a healed child, and on to a reasoner."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fretsaw.bench.settings import BenchSettings
from fretsaw.distill.settings import DistillSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.recipe import Inputs, Stage, slug
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


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What a compression is told; its stages are methods, in the order in which they run.

    The first stages depend on the parent alone; the others stand in a folder of the target's own,
    so that a second target adds a folder and reruns nothing before the search.
    """

    parent: str | Path
    target: str
    scenario: str
    """What is served. Several are costed together; the first is the one that is benched."""
    corpus: str = "corpus"
    under: str = ""
    """The folder of what depends on the target; by default it is named by the target."""
    rank: RankSettings = field(default_factory=RankSettings)
    bld: BldSettings | None = None
    """Trains the alternatives before they are scored."""
    score: ScoreSettings = field(default_factory=ScoreSettings)
    """Where it has spans (`fused`), the search says which FFNs are fused."""
    cost: CostSettings | None = None
    search: SearchSettings = field(default_factory=SearchSettings)
    verify: VerifySettings | None = None
    """Whole children correct the search and stand in its place."""
    assemble: AssembleSettings = field(default_factory=AssembleSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    bench: BenchSettings | None = None
    in_8_bits: Sequence[Literal["fp8", "int8"]] = ("fp8", "int8")
    """Precisions in which the parent is evaluated on text too, to stand beside the child."""
    candidates: int = 1
    """So many solutions, some of other searches among them, are assembled and healed briefly; the
    best of them is healed at length from its assembled weights."""
    brief: DistillSettings | None = None
    """How candidates are healed; by default on a tenth of the tokens."""
    fuse: FuseSettings | None = None
    """Fuses the assembled child's neighbouring FFNs before it is healed."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates {self.candidates}: give at least 1")
        if self.is_joint and (self.candidates > 1 or self.verify):
            raise ValueError(
                f"fused {self.score.fused}: the search says what is fused of its one child; leave "
                "out candidates and verify"
            )

    @property
    def is_joint(self) -> bool:
        """Whether the search weighs what fusing saves."""
        return self.score.fused > 1

    @property
    def at(self) -> str:
        """The folder of what depends on the target."""
        return self.under or slug(self.target)

    @property
    def found(self) -> str:
        """The stage whose solutions are built."""
        return f"{self.at}/verify" if self.verify else f"{self.at}/search"

    @property
    def assembled(self) -> list[str]:
        """The stages that build children, one a candidate."""
        names = [f"{self.at}/assemble{i}" for i in range(self.candidates)]
        return names if self.candidates > 1 else [f"{self.at}/assemble"]

    @property
    def start(self) -> str:
        """The child that is chosen, before it is healed at length."""
        return f"{self.at}/select" if self.candidates > 1 else self.assembled[0]

    @property
    def fusing(self) -> FuseSettings | None:
        """How FFNs are fused, if they are."""
        return self.fuse or (FuseSettings() if self.is_joint else None)

    @property
    def healed_from(self) -> str:
        """What is healed at length."""
        return f"{self.at}/fuse" if self.fusing else self.start

    @property
    def ranked(self) -> Inputs:
        """What reads the parent in its order reads."""
        return {"parent": self.parent, "corpus": self.corpus, "ranking": "rank"}

    @property
    def library(self) -> Inputs:
        """Alternatives that were trained, if they are."""
        return {"library": "bld"} if self.bld else {}

    def stages(self) -> list[Stage]:
        """Return the Puzzle path from parent and corpus to a healed, measured, reported child."""
        return [
            *self.of_the_parent(),
            *self.searching(),
            *self.building(),
            *self.healing(),
            *self.measuring(),
            self.reporting(),
        ]

    def of_the_parent(self) -> list[Stage]:
        """Return what any target needs: ranking, scores and costs."""
        read = {"parent": self.parent, "corpus": self.corpus}
        cost = self.cost or CostSettings(scenario=self.scenario)
        return [
            Stage("rank", self.rank, read),
            *([Stage("bld", self.bld, self.ranked)] if self.bld else []),
            Stage("score", self.score, self.ranked | self.library),
            Stage("cost", cost, {"parent": self.parent}),
        ]

    def searching(self) -> list[Stage]:
        """Return the search for the target, and its correction by whole children."""
        name, search = f"{self.at}/search", replace(self.search, target=self.target)
        if self.candidates > 1:
            search = replace(
                search,
                num_solutions=self.candidates,
                alpha=min(search.alpha, ALPHA),
                pool=search.pool or POOL[: self.candidates - 1],
            )
        stages = [Stage(name, search, {"scores": "score", "costs": "cost"})]
        if self.verify:
            read = self.ranked | self.library | {"search": name}
            stages.append(Stage(self.found, self.verify, read))
        return stages

    def building(self) -> list[Stage]:
        """Return what builds the child, or candidates of which the best is chosen; and fusing."""
        several = self.candidates > 1
        read = self.ranked | self.library | {"search": self.found}
        stages = [
            Stage(name, replace(self.assemble, solution=i) if several else self.assemble, read)
            for i, name in enumerate(self.assembled)
        ]
        if several:
            stages += self.choosing()
        if self.fusing:
            told: Inputs = {"search": self.found} if self.is_joint else {}
            text: Inputs = {"model": self.start, "corpus": self.corpus}
            stages.append(Stage(self.healed_from, self.fusing, text | told))
        return stages

    def choosing(self) -> list[Stage]:
        """Return what heals each candidate briefly and chooses one."""
        brief = self.brief or _tenth(self.distill)
        names = [f"{self.at}/brief{i}" for i in range(self.candidates)]
        taught: Inputs = {"parent": self.parent, "corpus": self.corpus}
        figure = "heldout_kl" if brief.needs_teacher else "heldout_loss"
        return [
            *(
                Stage(name, brief, {"child": child, **taught})
                for name, child in zip(names, self.assembled, strict=True)
            ),
            Stage(
                self.start,
                SelectSettings(figure=figure),
                {"child": [*names], "assembled": [*self.assembled]},
            ),
        ]

    def healing(self) -> list[Stage]:
        """Return the distillation."""
        read: Inputs = {"child": self.healed_from, "parent": self.parent, "corpus": self.corpus}
        return [Stage(f"{self.at}/distill", self.distill, read)]

    def measuring(self) -> list[Stage]:
        """Return what tells how good and how fast the child is, and the parent in 8 bits."""
        child, text = f"{self.at}/distill", {"parent": self.parent, "corpus": self.corpus}
        first = str(parse_scenarios(self.scenario)[0]) if "/" in self.scenario else self.scenario
        return [
            Stage(f"{self.at}/eval", self.evaluate, {"model": child, **text}),
            *(
                Stage(
                    f"parent-{precision}",
                    replace(self.evaluate, weights=precision, task=""),
                    {"model": self.parent, **text},
                )
                for precision in self.in_8_bits
            ),
            Stage(
                f"{self.at}/bench",
                self.bench or BenchSettings(scenario=first),
                {"parent": self.parent, "child": child, "search": self.found},
            ),
        ]

    def reporting(self) -> Stage:
        """Return the report of it all."""
        read: Inputs = {
            "parent": self.parent,
            "ranking": "rank",
            "scores": "score",
            "costs": "cost",
            "search": self.found,
            "assembled": self.start,
            "child": f"{self.at}/distill",
            "eval": f"{self.at}/eval",
            "bench": f"{self.at}/bench",
        }
        if self.in_8_bits:
            read["quantised"] = [f"parent-{precision}" for precision in self.in_8_bits]
        if self.fusing:
            read["fused"] = self.healed_from
        return Stage(f"{self.at}/report", ReportSettings(), read | self.library)


def compression(**told: Any) -> list[Stage]:
    """Return the stages of a `Compression`; None stands for a field's default."""
    return Compression(**{name: one for name, one in told.items() if one is not None}).stages()


def _tenth(distill: DistillSettings) -> DistillSettings:
    """Return a healing of a tenth of the tokens."""
    train = distill.train
    return replace(
        distill, train=replace(train, tokens=max(train.tokens // 10, train.batch_tokens))
    )


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
