"""Real weights: a public Llama of children's stories, compressed on the text it was trained for.

    fretsaw run stories --out runs/stories \\
        --arg checkpoint=PATH/stories260K --arg text=PATH/tinystories_train_prefix.txt

The checkpoint is any Llama-shaped folder or Hub id; the text is a file it was trained on, or one of
its kind. With 5 layers there is little to search: `docs/LOG.md` shows the same on a deeper parent.
"""

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.settings import DistillSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.puzzle.settings import RankSettings, ScoreSettings
from fretsaw.recipe import Stage, compression

SCENARIO = "batch=256,in=64,out=64,dtype=fp32,device=cpu"


def recipe(
    checkpoint: str, text: str, target: str = "1.5x decode", heal_tokens: int = 1_000_000
) -> list[Stage]:
    """Return the stages from a checkpoint and its text to a healed child and a report."""
    return [
        Stage(
            "corpus",
            CorpusSettings(source="files", max_tokens=2_000_000),
            {"parent": checkpoint, "data": [text]},
        ),
        *compression(
            parent=checkpoint,
            target=target,
            scenario=SCENARIO,
            rank=RankSettings(tokens=65_536),
            score=ScoreSettings(repair_tokens=65_536, tokens=32_768),
            distill=DistillSettings(train=TrainSettings(tokens=heal_tokens, learning_rate=1e-3)),
            evaluate=EvalSettings(tokens=65_536),
        ),
    ]
