"""Settings of the search's stages: rank, bld, score, cost, search, assemble."""

from dataclasses import dataclass, field
from typing import Literal

from fretsaw.training.settings import UpdateSettings


@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """Which alternatives every subblock has, beside its own shape."""

    kv_heads: tuple[int, ...] = ()
    """Numbers of key-value heads; empty: every divisor of the parent's."""
    ffn_percents: tuple[int, ...] = (87, 75, 62, 50, 25, 20, 10)
    """FFN widths in percent of the parent's, rounded to 256 (to 16 or 8 in small networks)."""
    linear: bool = True
    """A single matrix in place of a subblock; vLLM does not run it."""
    none: bool = True
    """Nothing in place of a subblock."""

    def __post_init__(self) -> None:
        if any(heads < 1 for heads in self.kv_heads):
            raise ValueError(f"space: kv_heads {self.kv_heads}; each is at least 1")
        if any(not 0 < percent < 100 for percent in self.ffn_percents):
            raise ValueError(
                f"space: ffn_percents {self.ffn_percents}; each lies between 0 and 100, without "
                "them (100 is always there, and `none` adds no FFN)"
            )


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """Rank FFN channels and key-value heads by what they contribute on calibration text."""

    tokens: int = 32_768
    """Calibration tokens."""
    seq_len: int = 256
    """Tokens of one row."""
    channels: Literal["contribution", "iterative", "repaired"] = "repaired"
    """Order of FFN channels: by their own contribution (the paper's), by what dropping each next
    one costs, or the same with the rest refitted after every drop."""
    align_heads: bool = True
    """Turn key-value heads onto one another, like ones side by side, before any are pooled."""


@dataclass(frozen=True, kw_only=True)
class BldSettings:
    """Train every layer's alternatives to do what the parent's block does on its own states."""

    space: SpaceSettings = field(default_factory=SpaceSettings)
    """The alternatives."""
    tokens: int = 524_288
    """Training tokens of every layer; text that has fewer is seen again."""
    batch_tokens: int = 2048
    """Tokens of one optimizer step."""
    seq_len: int = 256
    """Tokens of one row."""
    sizes_per_step: int = 0
    """Alternatives of each subblock that a step trains, drawn anew every step; 0: all."""
    attention_target: Literal["subblock", "block"] = "subblock"
    """What an attention is trained to match: the state after it, or after the parent's FFN too."""
    begin: Literal["repaired", "plain"] = "repaired"
    """Output matrices at the start: refitted in closed form, or as sliced."""
    repair_tokens: int = 32_768
    """Training text of the closed-form repair, before and after."""
    heldout_tokens: int = 16_384
    """Held-out text: one half chooses the weights that are kept, the other reports the error."""
    frontier_mib: int = 1024
    """Memory for the parent's states; what does not fit is computed again, chunk by chunk."""
    cross: bool = False
    """With a search: every attention of a layer's solutions with every FFN of theirs."""
    update: UpdateSettings = field(
        default_factory=lambda: UpdateSettings(
            optimizer="muon", min_lr_ratio=0.02, weight_decay=0.0
        )
    )
    """Optimizer and rates."""

    def __post_init__(self) -> None:
        if self.batch_tokens < self.seq_len or self.batch_tokens % self.seq_len:
            raise ValueError(
                f"batch_tokens {self.batch_tokens}: must be a multiple of seq_len {self.seq_len}"
            )
        if self.tokens < self.batch_tokens:
            raise ValueError(
                f"tokens {self.tokens}: must be at least batch_tokens {self.batch_tokens}"
            )
        if self.heldout_tokens < 2 * self.seq_len:
            raise ValueError(
                f"heldout_tokens {self.heldout_tokens}: one half chooses, the other reports; give "
                f"at least two rows of seq_len {self.seq_len}"
            )
        if self.sizes_per_step < 0 or self.frontier_mib < 1:
            raise ValueError(
                f"sizes_per_step {self.sizes_per_step}, frontier_mib {self.frontier_mib}; sizes "
                "are 0 (all) or more, the frontier gets at least 1 MiB"
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a layer."""
        return self.tokens // self.batch_tokens


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Score every alternative: how far the parent moves with that one subblock replaced."""

    space: SpaceSettings = field(default_factory=SpaceSettings)
    """The alternatives."""
    metric: Literal["kl", "lm_loss", "top1", "accuracy"] = "kl"
    """KL from the parent; rise of the loss on the text; share of tokens whose likeliest successor
    changes; accuracy lost on a task of your own."""
    repair_tokens: int = 32_768
    """Training text on which alternatives are repaired in closed form; 0: no repair."""
    ahead: int = 1
    """Subblocks after the replaced one that are refitted before it is judged."""
    tokens: int = 16_384
    """Held-out text on which is scored, at most."""
    first_tokens: int = 0
    """Score on this much text first, then on twice as much only what the answers of the search
    still hang on, until they are settled or `tokens` are used; 0: on all of it at once."""
    regret: float = 0.05
    """Answers are settled when, under resampled text, none is worse than the best by more."""
    max_error: float = 0.0
    """Standard error asked of the median score, relative to it; 0: whatever the text gives."""
    seq_len: int = 256
    """Tokens of one row."""
    batch_rows: int = 16
    """Rows of one forward."""
    exact: bool = False
    """Score every pair of attention and FFN of a layer, A x F forwards instead of A + F."""
    joint_pairs: int = 1
    """Pairs a layer that are scored jointly too, to see how well their scores add up."""
    task: str = ""
    """With metric accuracy: the problems, as `fretsaw eval --task` takes them."""
    num_problems: int = 200
    """Problems that are generated; of a file, all are taken."""
    mode: Literal["on", "off"] = "on"
    """Answer with or without thought."""
    max_new_tokens: int = 96
    """Tokens of one answer at most."""

    def __post_init__(self) -> None:
        if (self.metric == "accuracy") != bool(self.task):
            raise ValueError(
                f"metric {self.metric!r} with task {self.task!r}; accuracy needs a task, the other "
                "metrics take none"
            )
        if min(self.ahead, self.first_tokens, self.joint_pairs) < 0:
            raise ValueError("ahead, first_tokens and joint_pairs must not be negative")
        if self.exact and self.first_tokens:
            raise ValueError("exact scores every pair on all of the text; leave first_tokens at 0")


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """Measure prefill and decode time of every alternative at one or several scenarios."""

    space: SpaceSettings = field(default_factory=SpaceSettings)
    """The alternatives."""
    scenario: str = "batch=64,in=64,out=64,dtype=fp32,device=cpu"
    """What is served, and on what; batch=1/8/64 and in=64/1024 stand for every combination."""
    engine: Literal["embedded", "vllm", "roofline"] = "embedded"
    """What is timed: our engine, a vLLM server, or nothing (closed forms for a known device)."""
    rounds: int = 9
    """Interleaved repetitions; the median counts."""
    layers: int = 4
    """Stacks of this many and twice as many layers are timed; their difference is the cost."""
    probes: int = 4
    """Whole random children timed beside the parent."""
    server_command: str = ""
    """With vllm: what serves a folder, with {model} and {port} in it; empty: it runs already."""
    server_url: str = "http://127.0.0.1:{port}"
    """With vllm: where it answers; {port} and {index} tell the models' servers apart."""
    server_deadline_s: float = 600.0
    """With vllm: how long a server may take to start, and to answer."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.layers < 1 or self.probes < 0:
            raise ValueError(
                f"rounds {self.rounds}, layers {self.layers}, probes {self.probes}; "
                "give at least one round and one layer"
            )
        if self.server_deadline_s <= 0:
            raise ValueError(f"server_deadline_s {self.server_deadline_s}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Choose one alternative per subblock, exactly."""

    target: str = "1.5x decode"
    """What the child must reach, such as "1.5x decode", "60% memory", "0.7x params"."""
    num_solutions: int = 1
    """Solutions kept, best first."""
    min_difference: int = 1
    """Layers in which any two solutions differ at least."""
    margin: float = 0.02
    """Stay this fraction inside the bounds on time, since measured costs have noise."""
    pareto_points: int = 9
    """Points of the front of score against decode time that the report draws."""


@dataclass(frozen=True, kw_only=True)
class AssembleSettings:
    """Build a solution from the parent's weights, repaired layer by layer."""

    solution: int = 0
    """Which solution, counted from the best."""
    repair: bool = True
    """Refit output matrices in closed form, each on the child's own activations."""
    tokens: int = 32_768
    """Calibration tokens of the repair."""
    seq_len: int = 256
    """Tokens of one row."""
