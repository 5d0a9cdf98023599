"""What reading and tokenising text takes."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.model.size import kv_bytes
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.amounts import EVAL_BATCH, decoding_s, weight_bytes
from fretsaw.plan.stage_plan import StagePlan
from fretsaw.plan.work import Hardware, MemoryUse, Shapes, Work

TEXT_TOKENS_PER_S = 2e5  # read and tokenised


def corpus(s: CorpusSettings, at: Shapes, on: Hardware) -> Work:
    """Reading and tokenising; a text of the parent's own is decoded."""
    tokens = s.max_tokens + s.heldout_tokens
    seconds = tokens / TEXT_TOKENS_PER_S
    uses: tuple[MemoryUse, ...] = ()
    if s.source == "self" and "parent" in at:
        parent = at["parent"]
        length = min(s.sample_length, s.max_tokens)
        seconds += decoding_s(parent, on.alone, tokens / length, 1, length, EVAL_BATCH)
        cache = EVAL_BATCH * length * kv_bytes(parent, "fp32")
        uses = (MemoryUse(weights=weight_bytes(parent), cache=cache),)
    return Work(uses=uses, tokens=tokens, seconds=seconds, disk=4 * tokens)


def fewer(stage: Stage, stages: Sequence[Stage], steps: int) -> CorpusSettings:
    """Return a corpus of generated text as long as the rehearsed stages that read it need."""
    s = stage.settings
    longest = heldout = 0
    for reader in stages:
        shrunk = STAGES[reader.kind].load_plan().fewer
        if reader.kind == stage.kind or shrunk is None:
            continue
        one = shrunk(reader, stages, steps)
        own = getattr(one, "train", one)
        rows = getattr(own, "seq_len", 0)
        read = max(getattr(own, "tokens", 0), getattr(one, "repair_tokens", 0))
        longest = max(longest, 2 * read, 4 * rows)
        heldout = max(heldout, 2 * rows, getattr(one, "tokens", 0))
        heldout = max(heldout, getattr(own, "heldout_tokens", 0))
    longest, heldout = max(longest, 10 * heldout, 4 * s.seq_len), max(heldout, s.seq_len)
    return replace(s, source="world", dataset="", max_tokens=longest, heldout_tokens=heldout)


# Text that is read is generated in a rehearsal, which tells nothing of reading.
CORPUS = StagePlan(work=corpus, fewer=fewer, is_told=lambda s: s.source == "world")
