"""What kinds of stage there are: the one table that commands, recipes and the launcher read.

Standard library only; a stage's function is imported when it runs.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
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
    """What a stage does, where its function is, and what it reads."""

    summary: str
    function: str  # "module:function", imported only when the stage runs
    settings: type
    inputs: dict[str, str]  # name -> what it is
    optional: frozenset[str] = frozenset()
    has_workers: bool = False  # independent tasks, which workers can share
    is_distributed: bool = False  # runs in several processes when torchrun starts it
    several: frozenset[str] = frozenset({"data"})  # inputs that may be lists
    positional: str = ""  # an input that the command line takes without its name

    def load(self) -> Callable[..., dict[str, Any]]:
        """Import the function, and torch with it."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)


FILES = ("data", "problems")  # inputs that are files, not checkpoints

_PARENT = "the checkpoint that is compressed: a folder or a Hub id"
_CORPUS = "tokenised text, made by `fretsaw corpus`"
_RANKING = "channel order, made by `fretsaw rank`"
_PROBLEMS = "problems of your own: a JSONL file"
_SEARCH = "solutions, made by `fretsaw search` or `fretsaw verify`"
_LIBRARY = "trained alternatives, made by `fretsaw bld`"

STAGES: dict[str, StageKind] = {
    "corpus": StageKind(
        "text -> token ids, with a held-out part",
        "fretsaw.corpus.build:build",
        CorpusSettings,
        {"parent": "whose tokenizer is used; without it one is trained", "data": "text files"},
        frozenset({"parent", "data"}),
    ),
    "pretrain": StageKind(
        "train a small Llama from random weights",
        "fretsaw.distill.train:pretrain",
        PretrainSettings,
        {"corpus": _CORPUS},
        is_distributed=True,
    ),
    "rank": StageKind(
        "rank FFN channels and key-value heads",
        "fretsaw.puzzle.library.ranking:rank",
        RankSettings,
        {"parent": _PARENT, "corpus": _CORPUS},
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
        frozenset({"search", "library"}),
        has_workers=True,
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
        frozenset({"costs", "problems", "library"}),
        has_workers=True,
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
        frozenset({"measured", "refit"}),
        several=frozenset({"refit"}),
        has_workers=True,
    ),
    "search": StageKind(
        "choose the best child that meets a target, exactly",
        "fretsaw.puzzle.search.search:search",
        SearchSettings,
        {"scores": "made by `fretsaw score`", "costs": "made by `fretsaw cost`"},
    ),
    "verify": StageKind(
        "measure a few whole children and correct the scores by them",
        "fretsaw.puzzle.build.verify:verify",
        VerifySettings,
        {
            "parent": _PARENT,
            "corpus": _CORPUS,
            "ranking": _RANKING,
            "search": _SEARCH,
            "library": _LIBRARY,
        },
        frozenset({"library"}),
    ),
    "assemble": StageKind(
        "build the child from the parent's weights, repaired in closed form",
        "fretsaw.puzzle.build.assemble:assemble",
        AssembleSettings,
        {
            "parent": _PARENT,
            "corpus": _CORPUS,
            "ranking": _RANKING,
            "search": _SEARCH,
            "library": _LIBRARY,
        },
        frozenset({"library"}),
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
        frozenset({"search"}),
        has_workers=True,
        positional="model",
    ),
    "teach": StageKind(
        "store what the parent says of the text that distill will read",
        "fretsaw.distill.teacher:teach",
        TeachSettings,
        {"parent": _PARENT, "corpus": _CORPUS},
    ),
    "select": StageKind(
        "choose among candidates that were healed briefly",
        "fretsaw.puzzle.build.select:select",
        SelectSettings,
        {
            "child": "the candidates, healed briefly",
            "assembled": "the same candidates before healing, in the same order",
        },
        several=frozenset({"child", "assembled"}),
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
        frozenset({"parent", "teacher"}),
        is_distributed=True,
    ),
    "cpt": StageKind(
        "continue pretraining a checkpoint on text",
        "fretsaw.distill.train:continue_pretraining",
        CptSettings,
        {"model": "the checkpoint to train", "corpus": _CORPUS},
        is_distributed=True,
    ),
    "eval": StageKind(
        "held-out loss, agreement with the parent, task accuracy",
        "fretsaw.eval.evaluate:evaluate",
        EvalSettings,
        {
            "model": "the checkpoint to evaluate",
            "parent": _PARENT,
            "corpus": _CORPUS,
            "problems": _PROBLEMS,
        },
        frozenset({"parent", "corpus", "problems"}),
    ),
    "sft": StageKind(
        "tune on conversations, with reasoning on and off",
        "fretsaw.sft.train:tune",
        SftSettings,
        {"model": "the checkpoint to tune", "data": "conversations: JSONL or parquet files"},
        frozenset({"data"}),
        is_distributed=True,
    ),
    "rl": StageKind(
        "reinforce right answers: GRPO on graded problems",
        "fretsaw.rl.train:reinforce",
        RlSettings,
        {"model": "the chat checkpoint to train", "problems": _PROBLEMS},
        frozenset({"problems"}),
    ),
    "bench": StageKind(
        "measure child against parent at a scenario",
        "fretsaw.bench.measure:bench",
        BenchSettings,
        {"parent": _PARENT, "child": "the checkpoint to compare", "search": _SEARCH},
        frozenset({"search"}),
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
        frozenset(
            {"library", "quantised", "fused", "tuned", "tuned_eval", "reasoner", "reasoner_eval"}
        ),
        several=frozenset({"quantised"}),
    ),
}
