"""Options that mean the same in every command."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

Checkpoint = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
Repeated = Annotated[list[str], tyro.conf.UseAppendAction]
Dtype = Literal["auto", "fp32", "bf16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that computes."""

    out: Path
    """Where the result goes; the same command goes on there after an interruption."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of matrix work; auto takes bf16 where it is fast."""
    seed: int = 0
    """Seed of everything random."""
