"""Settings of reinforcement learning."""

from dataclasses import dataclass, field
from typing import Literal

from fretsaw.engine.sampling import MAX_TEMPERATURE, Sampling
from fretsaw.stage.settings import check_range
from fretsaw.tasks.limits import MAX_PROBLEMS
from fretsaw.training.settings import UpdateSettings


@dataclass(frozen=True, kw_only=True)
class RlSettings:
    """GRPO on problems whose answers can be graded, prompts of both modes in one batch.

    The defaults are those of the published Llama-Nemotron code where it has them (docs/rl.md).
    """

    task: str = "word_problems"
    """Problems: word_problems[:steps=2-5,max_value=30], a published set with its file
    (gsm8k:file=train.jsonl), or a JSONL file of your own."""
    num_problems: int = 4096
    """Problems that are generated; of a file, all are taken."""
    num_rollouts: int = 50
    """Rollouts: sample, grade, update."""
    prompts_per_rollout: int = 24
    """Prompts of one rollout."""
    group_size: int = 8
    """Answers sampled to every prompt; each is judged against the others."""
    on_share: float = 0.75
    """Share of the prompts with reasoning on."""
    updates_per_rollout: int = 2
    """Optimizer steps on one rollout, each on its own part of the prompts."""
    max_tokens: int = 512
    """Tokens of one answer at most; a longer one is cut and earns nothing."""
    temperature: float = 1.0
    """Of sampling."""
    needs_signal: bool = True
    """Refuse to go on where the first rollout prefers no answer to another."""
    normalise_rewards: bool = True
    """Divide advantages by the standard deviation of the group's other rewards."""
    average: Literal["sequence", "token"] = "sequence"
    """Mean over answers of their token means, or over all tokens alike."""
    clip_low: float = 0.2
    """The ratio of new to old probability counts down to 1 - clip_low."""
    clip_high: float = 0.2
    """The same upwards."""
    kl_coef: float = 0.01
    """Weight of the KL penalty that holds the model near its start; 0 needs no second model."""
    importance_correction: bool = False
    """Weigh tokens by trainer over engine probability; for an engine in lower precision."""
    heldout_problems: int = 128
    """Problems, in each mode, of a held-out measurement; of a file, a fifth at most; 0 measures
    nothing."""
    heldout_every: int = 10
    """Rollouts between held-out measurements."""
    max_batch: int = 256
    """Sequences decoded together."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward and backward."""
    save_every_s: float = 30.0
    """Seconds between saved states; it never changes the result."""
    update: UpdateSettings = field(
        default_factory=lambda: UpdateSettings(
            learning_rate=9e-7, beta2=0.98, weight_decay=0.1, warmup_ratio=0.02
        )
    )
    """Optimizer and rates."""

    def __post_init__(self) -> None:
        counts = ("num_rollouts", "prompts_per_rollout", "updates_per_rollout", "max_tokens")
        check_range(self, 1, *counts, "heldout_every", "max_batch", "micro_batch_tokens")
        check_range(self, 1, "num_problems", most=MAX_PROBLEMS)
        check_range(self, 0, "heldout_problems", most=MAX_PROBLEMS)
        check_range(self, 0, "on_share", "clip_low", most=1)
        check_range(self, 0, "clip_high", "kl_coef", "save_every_s")
        if self.group_size < 2:
            raise ValueError(
                f"group_size: {self.group_size}; an answer is judged against others of its prompt, "
                "give at least 2"
            )
        if self.prompts_per_rollout % self.updates_per_rollout:
            raise ValueError(
                f"prompts_per_rollout: {self.prompts_per_rollout}; must be a multiple of "
                f"updates_per_rollout {self.updates_per_rollout}"
            )
        if " + " in self.task:
            raise ValueError(f"task: {self.task!r}; one task is learnt, join several in one file")
        if not 0 < self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature: {self.temperature!r}; must be positive to explore, and "
                f"{MAX_TEMPERATURE:g} at most"
            )

    @property
    def sampling(self) -> Sampling:
        """What a rollout's answers are drawn with."""
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature)

    @property
    def num_on(self) -> int:
        """Prompts of one rollout with reasoning on."""
        return round(self.on_share * self.prompts_per_rollout)

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_rollouts * self.updates_per_rollout
