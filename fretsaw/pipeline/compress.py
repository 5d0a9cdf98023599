"""`fretsaw compress` as a recipe: a checkpoint, text and a target become a list of stages."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fretsaw.checkpoint.folder import check, refuse_8_bits
from fretsaw.checkpoint.hub import resolve
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.data.sources import is_hub_name, split_weights
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import num_params
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.recipe import Stage
from fretsaw.puzzle.search.rules import rules_of
from fretsaw.puzzle.settings import (
    AssembleSettings,
    BldSettings,
    CostSettings,
    EngineName,
    FuseSettings,
    RankSettings,
    ScoreSettings,
    SearchSettings,
    SpaceSettings,
    VerifySettings,
)
from fretsaw.scenario.scenario import parse_scenarios
from fretsaw.scenario.target import parse_targets
from fretsaw.training.settings import UpdateSettings

DEFAULT_SEQ_LEN = 256
SMALL = 50_000_000  # parameters
SPAN = 4  # layers whose FFNs a search may fuse, at most


def compress_stages(
    checkpoint: str | Path,
    *,
    data: Sequence[str | Path],
    target: str,
    scenario: str | None = None,
    device: str = "auto",
    tokens: int = 4_000_000,
    heal_tokens: int = 1_000_000,
    candidates: int = 1,
    verify: bool = False,
    bld_tokens: int = 0,
    fuse: bool = False,
    engine: EngineName = "vllm",
    seq_len: int | None = None,
) -> list[Stage]:
    """Return the stages that compress `checkpoint`; raise before any work what is wrong.

    What `engine` will not serve is neither trained, scored nor timed. With `fuse` the search weighs
    what fusing saves; where whole children are compared, their FFNs are fused after the choice.
    """
    parent = resolve(checkpoint)
    config = check(parent, needs_tokenizer=True)
    refuse_8_bits(parent, config)
    parse_targets(target)
    longest = config.max_position_embeddings
    seq_len = seq_len or min(DEFAULT_SEQ_LEN, longest)
    if seq_len > longest:
        raise ValueError(
            f"--seq-len {seq_len}: the model's context is {longest}; give at most that"
        )
    if scenario is None:
        half = min(64, longest // 2)
        found = "cuda" if shutil.which("nvidia-smi") else "cpu"
        label = found if device == "auto" else device.split(":")[0]
        scenario = f"batch=64,in={half},out={half},dtype=fp32,device={label}"
    for served in parse_scenarios(scenario):
        served.check_context(longest)
    space = SpaceSettings(linear=rules_of(engine).linear)
    is_joint = fuse and candidates == 1 and not verify  # else fused after the search
    bld = BldSettings(space=space, tokens=bld_tokens, seq_len=seq_len) if bld_tokens else None
    return [
        _corpus(parent, data, tokens, seq_len),
        *compression(
            parent=parent,
            target=target,
            scenario=scenario,
            rank=RankSettings(seq_len=seq_len),
            bld=bld,
            score=ScoreSettings(space=space, seq_len=seq_len, fused=SPAN if is_joint else 0),
            cost=CostSettings(space=space, scenario=scenario),
            search=SearchSettings(engine=engine),
            verify=VerifySettings(seq_len=seq_len) if verify else None,
            assemble=AssembleSettings(seq_len=seq_len),
            distill=DistillSettings(train=_healing(config, heal_tokens, seq_len)),
            evaluate=EvalSettings(seq_len=seq_len),
            candidates=candidates,
            fuse=_fusing(seq_len) if fuse else None,
        ),
    ]


def _fusing(seq_len: int) -> FuseSettings:
    """Return the settings of fusing, with text enough for long rows."""
    least = 2 * seq_len
    plain = FuseSettings()
    return FuseSettings(
        seq_len=seq_len,
        repair_tokens=max(plain.repair_tokens, least),
        tokens=max(plain.tokens, least),
        dependency_tokens=max(plain.dependency_tokens, seq_len),
    )


def _healing(config: ModelConfig, tokens: int, seq_len: int) -> TrainSettings:
    """Return the loop of the child's distillation; small networks bear Muon and large steps.

    The rates are ours, measured on networks of up to 2M parameters and on one of 135M (docs/log/).
    """
    rows = 8 * seq_len
    if num_params(config) < SMALL:
        update = UpdateSettings(optimizer="muon", muon_learning_rate=0.01, learning_rate=3e-3)
    else:
        update = UpdateSettings(learning_rate=2e-4)
    return TrainSettings(
        tokens=max(tokens, rows),
        batch_tokens=rows,
        micro_batch_tokens=rows,
        seq_len=seq_len,
        update=update,
    )


def _corpus(parent: Path, data: Sequence[str | Path], tokens: int, seq_len: int) -> Stage:
    sources, weights = split_weights([str(one) for one in data])
    if not sources:
        raise ValueError("--data: nothing given; give text files, a Hub dataset, or self")
    if sources == ["self"]:
        settings = CorpusSettings(seq_len=seq_len, source="self", max_tokens=min(tokens, 500_000))
        return Stage("corpus", settings, {"parent": parent})
    if any(is_hub_name(one) for one in sources):
        if len(sources) > 1:
            raise ValueError(f"--data {' '.join(sources)}: a Hub dataset stands alone")
        settings = CorpusSettings(
            seq_len=seq_len, source="hub", dataset=sources[0], max_tokens=tokens
        )
        return Stage("corpus", settings, {"parent": parent})
    for one in sources:
        if not Path(one).is_file():
            raise ValueError(f"--data {one}: no such file; give text files, a Hub dataset, or self")
    settings = CorpusSettings(seq_len=seq_len, source="files", max_tokens=tokens, weights=weights)
    return Stage("corpus", settings, {"parent": parent, "data": list(sources)})
