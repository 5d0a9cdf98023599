"""Real weights: a public Llama of children's stories, compressed on the text it was trained for.

    fretsaw run stories --out runs/stories \\
        --arg checkpoint=PATH/stories260K --arg text=PATH/tinystories_train_prefix.txt

The checkpoint is any Llama-shaped folder or Hub id; the text is a file it was trained on, or one of
its kind. With 5 layers there is little to search: `--arg deep=true` first trains a parent of 12
layers on the same text with the same tokenizer, and compresses that.
"""

from dataclasses import replace

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, PretrainSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.recipe import Stage
from fretsaw.puzzle.settings import RankSettings, ScoreSettings
from fretsaw.training.settings import UpdateSettings

SCENARIO = "batch=256,in=64,out=64,dtype=fp32,device=cpu"


def recipe(
    checkpoint: str,
    text: str,
    target: str = "1.5x decode",
    heal_tokens: int = 600_000,
    deep: bool = False,
) -> list[Stage]:
    """Return the stages from a checkpoint and its text to a healed child and a report."""
    train = TrainSettings(
        tokens=1_200_000,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        update=UpdateSettings(optimizer="muon", learning_rate=3e-3, min_lr_ratio=0.05),
    )
    healing = replace(train.update, muon_learning_rate=0.01, min_lr_ratio=0.1)
    deeper = Stage(
        "pretrain",
        PretrainSettings(
            num_hidden_layers=12,
            hidden_size=96,
            num_attention_heads=6,
            num_key_value_heads=3,
            intermediate_size=256,
            train=train,
        ),
        {"corpus": "corpus"},
    )
    return [
        Stage(
            "corpus",
            CorpusSettings(source="files", max_tokens=2_000_000),
            {"parent": checkpoint, "data": [text]},
        ),
        *([deeper] if deep else []),
        *compression(
            parent="pretrain" if deep else checkpoint,
            target=target,
            scenario=SCENARIO,
            rank=RankSettings(tokens=65_536),
            score=ScoreSettings(repair_tokens=65_536, tokens=32_768),
            distill=DistillSettings(train=replace(train, tokens=heal_tokens, update=healing)),
            evaluate=EvalSettings(tokens=65_536),
        ),
    ]
