"""Fretsaw: a Llama checkpoint and a hardware budget in, a faster model out.

import fretsaw
model = fretsaw.load("path/to/llama")
print(model.generate("Once upon a time"))
child = fretsaw.compress("path/to/llama", data=["text.txt"], target="1.5x decode", out="runs/a")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fretsaw.puzzle.settings import EngineName
    from fretsaw.talk.loaded import LoadedModel

__all__ = ["compress", "load"]


def load(checkpoint: str | Path, *, device: str = "auto", dtype: str = "auto") -> "LoadedModel":
    """Load a checkpoint folder or a Hub id, ready to generate; dtype is auto, fp32 or bf16."""
    from fretsaw.talk.loaded import LoadedModel

    return LoadedModel.from_checkpoint(checkpoint, device=device, dtype=dtype)


def compress(
    checkpoint: str | Path,
    *,
    data: Sequence[str | Path],
    target: str,
    out: str | Path,
    scenario: str | None = None,
    device: str = "auto",
    seed: int = 0,
    heal_tokens: int = 1_000_000,
    candidates: int = 1,
    verify: bool = False,
    bld_tokens: int = 0,
    engine: "EngineName" = "vllm",
) -> Path:
    """Compress a checkpoint as `fretsaw compress` does; return the folder of the healed child."""
    from fretsaw.pipeline import walk as pipeline
    from fretsaw.pipeline.compress import compress_stages

    stages = compress_stages(
        checkpoint,
        data=data,
        target=target,
        scenario=scenario,
        device=device,
        heal_tokens=heal_tokens,
        candidates=candidates,
        verify=verify,
        bld_tokens=bld_tokens,
        engine=engine,
    )
    options = pipeline.RunOptions(
        name=f"compress {checkpoint}", out=Path(out), device=device, seed=seed
    )
    pipeline.run(stages, options)
    return next(Path(out) / stage.name for stage in stages if stage.kind == "distill")
