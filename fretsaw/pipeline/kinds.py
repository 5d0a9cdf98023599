"""What kinds of stage there are: the one table that commands, recipes and the launcher read.

Standard library only; a stage's function is imported when it runs.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.bench.settings import BenchSettings
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import (
    CptSettings,
    DistillSettings,
    PretrainSettings,
    TeachSettings,
)
from fretsaw.eval.settings import EvalSettings
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
from fretsaw.sft.settings import SftSettings


@dataclass(frozen=True)
class StageKind:
    """One row a stage: what it does, what it reads and makes, and where its functions are.

    Command line, recipes, launcher, checks, plan and documentation all read it here.
    """

    summary: str
    function: str  # "module:function", imported only when the stage runs
    settings: type
    inputs: dict[str, str]  # name -> what it is
    plan: str  # "module:StagePlan": what it takes, and less of the same for a rehearsal
    page: str  # its page in docs/
    optional: frozenset[str] = frozenset()
    makes: str = ""  # the input of other stages that it is for; "checkpoint" for any model's
    file: str = ""  # by which what it made is known
    like: str = ""  # the input whose architecture the checkpoint it makes has
    several: frozenset[str] = frozenset({"data"})  # inputs that may be lists
    leading: str = ""  # an input whose name the command line may leave out in front
    positional: str = ""  # an input that the command line takes without its name
    computes: bool = True  # else neither device nor dtype matter, and its inputs are only read
    reads_weights: bool = True  # of its checkpoints; else their configs and tokenizers do
    tokenizer_of: str = ""  # the input whose tokenizer it can't do without
    preview: str = ""  # "module:function" of (settings, inputs, seed): what --dry-run shows besides
    casts: bool = False  # matrix products in bf16 where the run's dtype is
    has_workers: bool = False  # independent tasks, which workers can share
    workers_in_runs: bool = True  # else only where its own command says so
    is_distributed: bool = False  # runs in several processes when torchrun starts it
    compares: bool = False  # its model with the parent, so vocabularies must agree
    shows: str = ""  # a file that a finished run points to
    note: str = ""  # what its --help says beside the summary

    def load(self) -> Callable[..., dict[str, Any]]:
        """Import the function, and torch with it."""
        return _named(self.function)

    def load_preview(self) -> Callable[[Any, Mapping[str, Path], int], str] | None:
        """Import what tells more of a dry run, None where there is nothing."""
        return _named(self.preview) if self.preview else None

    def load_plan(self) -> Any:
        """Import what is known of it beforehand, a `StagePlan`; without torch."""
        return _named(self.plan)


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


CHECKPOINTS = ("parent", "model", "child")  # inputs that are checkpoints
FILES = ("data", "problems")  # inputs that are files
_PARENT = "the checkpoint that is compressed: a folder or a Hub id"
_CORPUS = "tokenised text, made by `fretsaw corpus`"
_RANKING = "channel order, made by `fretsaw rank`"
_PROBLEMS = "problems: a published set's file, or a JSONL file of your own"
_SEARCH = "solutions, made by `fretsaw search` or `fretsaw verify`"
_LIBRARY = "trained alternatives, made by `fretsaw bld`"

STAGES: dict[str, StageKind] = {
    "corpus": StageKind(
        "text -> token ids, with a held-out part",
        "fretsaw.corpus.build:build",
        CorpusSettings,
        {
            "parent": "whose tokenizer is used; without it one is trained",
            "data": "text files, each with a weight if need be: a.txt b.jsonl:0.3",
        },
        optional=frozenset({"parent", "data"}),
        plan="fretsaw.plan.stages.corpus:CORPUS",
        page="corpus.md",
        makes="corpus",
        file="train.npy",
        like="parent",
        reads_weights=False,
        tokenizer_of="parent",
    ),
    "pretrain": StageKind(
        "train a small Llama from random weights",
        "fretsaw.distill.train:pretrain",
        PretrainSettings,
        {"corpus": _CORPUS},
        is_distributed=True,
        plan="fretsaw.plan.stages.training:PRETRAIN",
        page="train.md",
        makes="checkpoint",
        casts=True,
    ),
    "rank": StageKind(
        "rank FFN channels and key-value heads",
        "fretsaw.puzzle.library.ranking:rank",
        RankSettings,
        {"parent": _PARENT, "corpus": _CORPUS},
        plan="fretsaw.plan.stages.rank:RANK",
        page="rank.md",
        makes="ranking",
        file="ranking.safetensors",
    ),
    "bld": StageKind(
        "train every alternative to match the parent's block",
        "fretsaw.puzzle.bld.bld:bld",
        BldSettings,
        {
            "parent": _PARENT,
            "corpus": _CORPUS,
            "ranking": _RANKING,
            "search": "whose solutions' pairs are trained together, made by `fretsaw search`",
            "library": "where pairs start, made by `fretsaw bld`",
        },
        optional=frozenset({"search", "library"}),
        has_workers=True,
        plan="fretsaw.plan.stages.bld:BLD",
        page="bld.md",
        makes="library",
        casts=True,
    ),
    "score": StageKind(
        "score every alternative: what replacing it alone does",
        "fretsaw.puzzle.scores.score:score",
        ScoreSettings,
        {
            "parent": _PARENT,
            "corpus": _CORPUS,
            "ranking": _RANKING,
            "costs": "made by `fretsaw cost`; with first_tokens, what the answers are weighed by",
            "problems": _PROBLEMS,
            "library": _LIBRARY,
        },
        optional=frozenset({"costs", "problems", "library"}),
        has_workers=True,
        plan="fretsaw.plan.stages.score:SCORE",
        page="score.md",
        makes="scores",
        file="scores.json",
    ),
    "cost": StageKind(
        "measure every alternative's time at a scenario",
        "fretsaw.puzzle.costs.cost:cost",
        CostSettings,
        {
            "parent": _PARENT,
            "measured": "a cost folder whose timings are taken over",
            "refit": "benches whose children's times the costs are fitted to as well",
        },
        optional=frozenset({"measured", "refit"}),
        several=frozenset({"refit"}),
        has_workers=True,
        plan="fretsaw.plan.stages.cost:COST",
        page="cost.md",
        makes="costs",
        file="costs.json",
        workers_in_runs=False,
        reads_weights=False,
    ),
    "search": StageKind(
        "choose the best child that meets a target, exactly",
        "fretsaw.puzzle.search.search:search",
        SearchSettings,
        {"scores": "made by `fretsaw score`", "costs": "made by `fretsaw cost`"},
        plan="fretsaw.plan.stages.search:SEARCH",
        page="search.md",
        makes="search",
        file="solutions.json",
        computes=False,
        note="To search a table of other measurements instead: fretsaw search-table --help.",
    ),
    "verify": StageKind(
        "measure a few whole children and correct the scores by them",
        "fretsaw.puzzle.children.verify:verify",
        VerifySettings,
        {
            "parent": _PARENT,
            "corpus": _CORPUS,
            "ranking": _RANKING,
            "search": _SEARCH,
            "library": _LIBRARY,
        },
        optional=frozenset({"library"}),
        plan="fretsaw.plan.stages.assemble:VERIFY",
        page="verify.md",
        makes="search",
        file="solutions.json",
        like="search",
    ),
    "assemble": StageKind(
        "build the child from the parent's weights, repaired in closed form",
        "fretsaw.puzzle.children.assemble:assemble",
        AssembleSettings,
        {
            "parent": _PARENT,
            "corpus": _CORPUS,
            "ranking": _RANKING,
            "search": _SEARCH,
            "library": _LIBRARY,
        },
        optional=frozenset({"library"}),
        plan="fretsaw.plan.stages.assemble:ASSEMBLE",
        page="assemble.md",
        makes="checkpoint",
        like="search",
    ),
    "fuse": StageKind(
        "make one FFN of neighbouring ones without attention between",
        "fretsaw.puzzle.fuse.fuse:fuse",
        FuseSettings,
        {
            "model": "the checkpoint whose FFNs are fused: a folder or a Hub id",
            "corpus": _CORPUS,
            "search": "whose best solution says what is fused, in place of a choice",
        },
        optional=frozenset({"search"}),
        has_workers=True,
        positional="model",
        plan="fretsaw.plan.stages.fuse:FUSE",
        page="fuse.md",
        makes="checkpoint",
        like="model",
    ),
    "teach": StageKind(
        "store what the parent says of the text that distill will read",
        "fretsaw.distill.teacher:teach",
        TeachSettings,
        {"parent": _PARENT, "corpus": _CORPUS},
        plan="fretsaw.plan.stages.training:TEACH",
        page="train.md",
        makes="teacher",
        casts=True,
    ),
    "select": StageKind(
        "choose among candidates that were healed briefly",
        "fretsaw.puzzle.children.select:select",
        SelectSettings,
        {
            "child": "the candidates, healed briefly",
            "assembled": "the same candidates before healing, in the same order",
        },
        several=frozenset({"child", "assembled"}),
        plan="fretsaw.plan.stages.assemble:SELECT",
        page="search.md",
        makes="checkpoint",
        like="child",
        computes=False,
    ),
    "distill": StageKind(
        "heal the child by distillation from its parent",
        "fretsaw.distill.train:distill",
        DistillSettings,
        {
            "child": "the checkpoint to train",
            "parent": _PARENT,
            "corpus": _CORPUS,
            "teacher": "the parent's answers, made by `fretsaw teach`, in place of the parent",
        },
        optional=frozenset({"parent", "teacher"}),
        is_distributed=True,
        plan="fretsaw.plan.stages.training:DISTILL",
        page="train.md",
        makes="checkpoint",
        like="child",
        casts=True,
        compares=True,
    ),
    "cpt": StageKind(
        "continue pretraining a checkpoint on text",
        "fretsaw.distill.train:continue_pretraining",
        CptSettings,
        {"model": "the checkpoint to train", "corpus": _CORPUS},
        is_distributed=True,
        plan="fretsaw.plan.stages.training:CPT",
        page="train.md",
        makes="checkpoint",
        like="model",
        casts=True,
    ),
    "eval": StageKind(
        "held-out loss, agreement with the parent, task accuracy",
        "fretsaw.eval.evaluate:evaluate",
        EvalSettings,
        {
            "model": "the checkpoint to evaluate, or a server's URL",
            "parent": _PARENT,
            "corpus": _CORPUS,
            "problems": _PROBLEMS,
        },
        optional=frozenset({"model", "parent", "corpus", "problems"}),
        several=frozenset({"problems"}),
        leading="model",
        plan="fretsaw.plan.stages.evaluate:EVAL",
        page="eval.md",
        compares=True,
    ),
    "sft": StageKind(
        "tune on conversations, with reasoning on and off",
        "fretsaw.sft.train:tune",
        SftSettings,
        {"model": "the checkpoint to tune", "data": "conversations: JSONL or parquet files"},
        optional=frozenset({"data"}),
        is_distributed=True,
        plan="fretsaw.plan.stages.sft:SFT",
        preview="fretsaw.sft.doctor:preview",
        page="sft.md",
        makes="checkpoint",
        like="model",
        tokenizer_of="model",
        casts=True,
    ),
    "rl": StageKind(
        "reinforce right answers: GRPO on graded problems",
        "fretsaw.rl.train:reinforce",
        RlSettings,
        {"model": "the chat checkpoint to train", "problems": _PROBLEMS},
        optional=frozenset({"problems"}),
        plan="fretsaw.plan.stages.rl:RL",
        page="rl.md",
        makes="checkpoint",
        like="model",
        tokenizer_of="model",
        casts=True,
    ),
    "bench": StageKind(
        "measure child against parent at a scenario",
        "fretsaw.bench.measure:bench",
        BenchSettings,
        {"parent": _PARENT, "child": "the checkpoint to compare", "search": _SEARCH},
        optional=frozenset({"search"}),
        plan="fretsaw.plan.stages.bench:BENCH",
        page="bench.md",
        note="To measure a server, or a checkpoint behind ours: fretsaw bench-server --help.",
    ),
    "report": StageKind(
        "one HTML page and a model card",
        "fretsaw.report.html:report",
        ReportSettings,
        {
            "parent": _PARENT,
            "ranking": _RANKING,
            "scores": "made by `fretsaw score`",
            "costs": "made by `fretsaw cost`",
            "search": _SEARCH,
            "assembled": "the child before healing",
            "child": "the healed child",
            "eval": "made by `fretsaw eval`",
            "bench": "made by `fretsaw bench`",
            "library": _LIBRARY,
            "quantised": "of the parent in 8 bits, made by `fretsaw eval --weights fp8`",
            "fused": "the assembled child with FFNs fused, made by `fretsaw fuse`",
            "tuned": "the child tuned by `fretsaw sft`",
            "tuned_eval": "its `fretsaw eval`",
            "reasoner": "the child reinforced by `fretsaw rl`",
            "reasoner_eval": "its `fretsaw eval`",
        },
        optional=frozenset(
            {"library", "quantised", "fused", "tuned", "tuned_eval", "reasoner", "reasoner_eval"}
        ),
        several=frozenset({"quantised"}),
        plan="fretsaw.plan.stages.report:REPORT",
        page="report.md",
        computes=False,
        shows="report.html",
    ),
}


def made_inputs() -> dict[str, tuple[str, list[str]]]:
    """Return the inputs that stages make: a file that is there, and the stages that write it."""
    made: dict[str, tuple[str, list[str]]] = {}
    for name, kind in STAGES.items():
        if kind.file:
            made.setdefault(kind.makes, (kind.file, []))[1].append(name)
    return made
