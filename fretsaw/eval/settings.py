"""Settings of evaluation."""

from dataclasses import dataclass, field
from typing import Literal

from fretsaw.client.judge_settings import JudgeSettings
from fretsaw.engine.sampling import MAX_TEMPERATURE
from fretsaw.stage.settings import check_range
from fretsaw.tasks.limits import MAX_PROBLEMS


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Held-out loss and agreement with the parent; scores of the tasks that are named."""

    tokens: int = 65_536
    """Held-out tokens at most."""
    seq_len: int = 256
    """Tokens of one row."""
    batch_rows: int = 16
    """Rows of one forward."""
    task: str = ""
    """Problems to grade answers to, in both modes: word_problems[:steps=2-5,max_value=30,
    phrasing=heldout]; a published set with its file, gsm8k:file=test.jsonl; or a JSONL file of your
    own (prompt, answer, grader). Several are joined by " + "."""
    num_problems: int = 500
    """Problems that are generated."""
    limit: int = 0
    """Of each file the first so many problems; 0 takes all."""
    samples: int = 1
    """Answers to each problem; their mean counts. A mode that is decoded greedily gives one."""
    temperature: float | None = None
    """Of both modes, 0 is greedy; None is the task's own, most often 0.6 with reasoning, and greedy
    without."""
    top_p: float | None = None
    """Of both modes; None is the task's own, most often 0.95 with reasoning."""
    max_new_tokens: int = 0
    """Tokens of one answer at most; 0 is the task's own."""
    modes: Literal["both", "on", "off"] = "both"
    """Reasoning on and off, of those that the model has."""
    weights: Literal["auto", "full", "fp8", "int8"] = "auto"
    """The model's matrices in full precision or in 8 bits; auto: as the search chose."""
    url: str = ""
    """A server to evaluate in place of a checkpoint: any OpenAI-compatible one."""
    url_model: str = ""
    """The model at that server; the first that it names where this is empty."""
    url_toggle: Literal["enable_thinking", "v1", "v1.5", "none"] = "enable_thinking"
    """How that model is told the mode: by chat_template_kwargs, by the line "detailed thinking on"
    or by /think in the system turn, or not at all (it then answers in one mode)."""

    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """Who judges, for tasks that take a judge."""

    def __post_init__(self) -> None:
        check_range(self, 1, "tokens", "seq_len", "batch_rows", "samples")
        check_range(self, 1, "num_problems", most=MAX_PROBLEMS)
        check_range(self, 0, "max_new_tokens", "limit")
        if self.temperature is not None:
            check_range(self, 0, "temperature", most=MAX_TEMPERATURE)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p!r}; lies in 0 to 1, 0 excluded")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} at temperature 0 are all the same; give a temperature"
            )
