"""Settings of evaluation."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Held-out loss and agreement with the parent; the accuracy on a task if one is named."""

    tokens: int = 65_536
    """Held-out tokens at most."""
    seq_len: int = 256
    """Tokens of one row."""
    batch_rows: int = 16
    """Rows of one forward."""
    task: Literal["", "word_problems"] = ""
    """A task to grade greedy answers on, with the generator's own held-out problems."""
    num_problems: int = 500
    """Problems of the task, for each mode."""
    max_new_tokens: int = 96
    """Tokens of one answer at most."""
