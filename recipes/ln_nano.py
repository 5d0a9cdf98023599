"""Llama-3.1-Nemotron-Nano-8B-v1 as data, and its three stages of supervised fine-tuning.

    fretsaw plan ln_nano                            # sizes
    fretsaw plan ln_nano --gpu h100x8 --price 2.5   # hours, memory and money of the tuning
    fretsaw run ln_nano --out RUN --arg reasoning=A.jsonl --arg mixed=B.jsonl --arg blend=C.jsonl

Its architecture is Llama-3.1-8B's, unchanged. It was tuned in three stages (arXiv 2505.00949,
section 4): on reasoning alone, which keeps it from repeating itself; with answers without reasoning
among them, which teaches the toggle; on a small blend of chat, instructions and tool calls. The
preference optimisation that followed is not part of it. Not yet run here: it needs a cluster.
"""

from dataclasses import replace

from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.published import LLAMA_8B, Published
from fretsaw.sft.settings import SftSettings
from fretsaw.training.settings import UpdateSettings

PUBLISHED = Published(
    title="Llama-3.1-Nemotron-Nano-8B-v1, which is Llama-3.1-8B's architecture (arXiv 2505.00949)",
    models={"parent": LLAMA_8B},
)

SEQ_LEN = 32_768  # packed
BATCH = 256  # rows of a step


def recipe(
    reasoning: str,
    mixed: str,
    blend: str,
    checkpoint: str = "meta-llama/Llama-3.1-8B-Instruct",
    task: str = "word_problems",
) -> list[Stage]:
    """Return the stages from the 8B and three files of conversations to a model with the toggle.

    Rate, epochs, rows and batch of the first stage are the paper's. Of the second and third it
    gives none: a lower rate and one epoch are ours.
    """
    first = SftSettings(
        epochs=4,
        seq_len=SEQ_LEN,
        too_long="skip",
        batch_tokens=BATCH * SEQ_LEN,
        micro_batch_tokens=SEQ_LEN,
        update=UpdateSettings(learning_rate=1e-4, warmup_ratio=0.1, master="bf16"),
    )
    later = replace(first, epochs=1, update=replace(first.update, learning_rate=1e-5))
    stages = [
        Stage("sft-reasoning", first, {"model": checkpoint, "data": [reasoning]}),
        Stage("sft-toggle", later, {"model": "sft-reasoning", "data": [mixed]}),
        Stage("sft-blend", later, {"model": "sft-toggle", "data": [blend]}),
    ]
    evaluate = EvalSettings(task=task, max_new_tokens=16_384)
    return [*stages, Stage("eval", evaluate, {"model": "sft-blend"})]
