"""Settings of the search's stages: rank, score, cost, search, assemble."""

from dataclasses import dataclass, field
from typing import Literal


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
class ScoreSettings:
    """Score every alternative: KL from the parent with that one subblock replaced."""

    space: SpaceSettings = field(default_factory=SpaceSettings)
    """The alternatives."""
    repair_tokens: int = 32_768
    """Training text on which narrowed FFNs are repaired in closed form."""
    tokens: int = 16_384
    """Held-out text on which the KL is measured."""
    seq_len: int = 256
    """Tokens of one row."""
    batch_rows: int = 16
    """Rows of one forward."""


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
