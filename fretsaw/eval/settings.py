"""Settings of evaluation."""

from dataclasses import dataclass
from typing import Literal

from fretsaw.engine.sampling import MAX_TEMPERATURE
from fretsaw.stage.settings import check_range
from fretsaw.tasks.limits import MAX_PROBLEMS


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Held-out loss and agreement with the parent; the accuracy on a task if one is named."""

    tokens: int = 65_536
    """Held-out tokens at most."""
    seq_len: int = 256
    """Tokens of one row."""
    batch_rows: int = 16
    """Rows of one forward."""
    task: str = ""
    """Problems to grade answers to, in both modes: word_problems[:steps=2-5,max_value=30,
    phrasing=heldout], or a JSONL file of your own (prompt, answer, grader). Several are joined
    by " + "."""
    num_problems: int = 500
    """Problems that are generated; of a file, all are taken."""
    samples: int = 1
    """Answers to each problem."""
    temperature: float = 0.0
    """0 is greedy."""
    max_new_tokens: int = 96
    """Tokens of one answer at most."""
    weights: Literal["auto", "full", "fp8", "int8"] = "auto"
    """The model's matrices in full precision or in 8 bits; auto: as the search chose."""

    def __post_init__(self) -> None:
        check_range(self, 1, "tokens", "seq_len", "batch_rows", "samples", "max_new_tokens")
        check_range(self, 1, "num_problems", most=MAX_PROBLEMS)
        check_range(self, 0, "temperature", most=MAX_TEMPERATURE)
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} at temperature 0 are all the same; give a temperature"
            )
