"""Settings of the search's stages: rank, bld, score, cost, search, verify, assemble, select."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fretsaw.checkpoint.export_targets import EXPORT_TARGETS
from fretsaw.training.settings import UpdateSettings

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[tuple(EXPORT_TARGETS)]  # one of those that children are exported for
Method = Literal["mip", "greedy", "uniform", "depth", "contiguous", "max_params", "random"]


NUM_JUDGING = 64  # rows times draws that a refit is judged by
NUM_SCORING = 256  # rows times draws that an estimate rests on


def judging_draws(num_rows: int) -> int:
    """Return how many draws of gradients a judging text of so many rows takes."""
    return -(-NUM_JUDGING // num_rows)


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
    precisions: tuple[Literal["fp8", "int8"], ...] = ()
    """Every subblock that is there also with its matrices in 8 bits, as `fretsaw export` writes
    them for vLLM; int8 is what CPUs with AVX-512 VNNI are fast in too."""

    def __post_init__(self) -> None:
        if any(heads < 1 for heads in self.kv_heads):
            raise ValueError(f"space: kv_heads {self.kv_heads}; each is at least 1")
        if any(not 0 < percent < 100 for percent in self.ffn_percents):
            raise ValueError(
                f"space: ffn_percents {self.ffn_percents}; each lies between 0 and 100, without "
                "them (100 is always there, and `none` adds no FFN)"
            )


def _require_rows(seq_len: int, least: int = 1, **tokens: int) -> None:
    """Raise where a count of tokens, given by its name, has fewer than `least` rows."""
    if seq_len < 1:
        raise ValueError(f"seq_len {seq_len}: a row has at least 1 token")
    for name, value in tokens.items():
        if value < least * seq_len:
            rows = "a row" if least == 1 else f"{least} rows"
            raise ValueError(
                f"{name} {value}: must be at least {rows} of seq_len {seq_len}, {least * seq_len}"
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

    def __post_init__(self) -> None:
        _require_rows(self.seq_len, tokens=self.tokens)


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
    attention_target: Literal["subblock", "block"] = "block"
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
    judge: Literal["estimate", "replay"] = "estimate"
    """A refit stays where it lowers the KL: estimated to second order, or replayed to the end."""
    replay: Literal["needed", "all"] = "needed"
    """Alternatives alone are scored by an estimate to second order; replayed to the end are those
    for which it does not hold and those that the search's answers hang on, or all."""
    draws: int = 0
    """Gradients of every token that the estimate rests on, each of next tokens drawn from the
    parent; 0: as many as make 256 with the rows."""
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
    fused: int = 0
    """Up to so many neighbouring layers are also scored with their FFNs fused and no attention
    between, for a search that weighs what fusing saves; 0 or 1: none."""
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
        if min(self.ahead, self.repair_tokens, self.joint_pairs) < 0 or self.batch_rows < 1:
            raise ValueError(
                f"ahead {self.ahead}, repair_tokens {self.repair_tokens}, joint_pairs "
                f"{self.joint_pairs}, batch_rows {self.batch_rows}; batches have a row, the others "
                "are 0 or more"
            )
        if self.draws < 0:
            raise ValueError(f"draws {self.draws}: give 1 or more, or 0 for as many as it takes")
        _require_rows(self.seq_len, 2, tokens=self.tokens)  # one row has no standard error
        if self.first_tokens:
            _require_rows(self.seq_len, 4, first_tokens=self.first_tokens)  # to be drawn again
        if self.fused > 1 and (self.first_tokens or self.exact or self.metric == "accuracy"):
            raise ValueError(
                f"fused {self.fused}: spans are scored on all of the text, by what replay "
                "measures; leave out first_tokens, exact and metric accuracy"
            )
        if self.fused > 1 and not self.space.none:
            raise ValueError(
                f"fused {self.fused}: FFNs are fused where attention is removed, which the space "
                "does not allow; set none"
            )
        if self.first_tokens and (self.exact or self.metric == "accuracy"):
            raise ValueError(
                f"first_tokens {self.first_tokens}: with exact every pair is scored on all of the "
                "text, and accuracy is of the task's problems; leave it at 0"
            )

    @property
    def judges_by_estimate(self) -> bool:
        """Whether refits are offered and judged by the estimate."""
        return self.judge == "estimate" and self.repair_tokens > 0

    def scoring_draws(self, num_rows: int) -> int:
        """Return how many draws of gradients a scoring text of so many rows takes."""
        return self.draws or -(-NUM_SCORING // num_rows)

    @property
    def scores_by_estimate(self) -> bool:
        """Whether alternatives alone are scored by the estimate, which knows nothing but the KL."""
        all_replayed = self.replay == "all" or self.exact or self.first_tokens > 0
        return self.metric == "kl" and not all_replayed


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
    """What the child must reach, such as "1.5x decode", "60% memory", "0.7x params"; a scenario
    that was measured may be named, as in "1.5x decode @ batch=64"."""
    engine: EngineName = "vllm"
    """What will serve the child; what it does not take is not chosen (see `fretsaw export`)."""
    tensor_parallel: int = 1
    """Devices a layer is split over; it divides key-value heads and FFN widths."""
    num_solutions: int = 1
    """Solutions kept, best first."""
    min_difference: int = 1
    """Layers in which any two solutions differ at least."""
    alpha: float = 1.0
    """Share of layers that any two solutions have in common at most (0.8 in the paper)."""
    pool: tuple[Method, ...] = ()
    """Other searches whose child takes the place of the last of the solutions: healing may like it
    better than its scores say."""
    margin: float = 0.02
    """Stay this fraction inside the bounds on time, since measured costs have noise."""
    method: Method = "mip"
    """mip is exact; the others are for comparison, under the same bounds and rules."""
    pareto_points: int = 9
    """Points of the front of score against one cost, which the report draws."""
    pareto_cost: str = "decode_ms"
    """That cost: decode_ms, prefill_ms, memory_mib, params; or a sum, prefill_ms+decode_ms."""

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1 or not 0 <= self.margin < 1 or self.pareto_points < 2:
            raise ValueError(
                f"tensor_parallel {self.tensor_parallel}, margin {self.margin}, pareto_points "
                f"{self.pareto_points}; give at least 1 device, a margin from 0 to below 1, and at "
                "least 2 points"
            )
        if len(self.pool) >= self.num_solutions and self.pool:
            raise ValueError(
                f"pool {', '.join(self.pool)}: with num_solutions {self.num_solutions} no place is "
                "left for the search's own; ask for more solutions"
            )


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """Choose among candidates that were healed briefly, by a figure of their healing."""

    figure: str = "heldout_kl"
    """The figure, as in their manifests; the least wins. Without a teacher: heldout_loss."""


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Measure a few whole children and correct the scores by what their sums missed."""

    children: int = 6
    """Diverse solutions that are measured first."""
    rounds: int = 4
    """Times at most that the corrected search names a new child, which is measured too."""
    alpha: float = 0.9
    """Share of layers that any two of the first have in common at most."""
    repair_tokens: int = 32_768
    """Calibration tokens of each child's repair."""
    judge: Literal["estimate", "replay"] = "estimate"
    """A refit stays where it lowers the KL: estimated to second order, or replayed to the end."""
    tokens: int = 16_384
    """Held-out text on which children are measured."""
    seq_len: int = 256
    """Tokens of one row."""
    batch_rows: int = 16
    """Rows of one forward."""

    def __post_init__(self) -> None:
        if self.children < 2 or self.rounds < 0:
            raise ValueError(
                f"children {self.children}, rounds {self.rounds}; give at least 2 children, and 0 "
                "rounds or more"
            )
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows {self.batch_rows}: a batch has at least 1 row")
        _require_rows(self.seq_len, tokens=self.tokens, repair_tokens=self.repair_tokens)


@dataclass(frozen=True, kw_only=True)
class FuseSettings:
    """Make one wider FFN of neighbouring ones that have no attention between them."""

    max_kl: float = 0.01
    """KL from the unfused model that fusing may cost, nats a token; what saves most within it is
    taken."""
    target: str = ""
    """In place of max_kl: the speed-up to reach for the least KL, such as "1.05x decode"."""
    groups: tuple[str, ...] = ()
    """In place of a choice: layers to fuse, such as 42-50 53-69."""
    rule: Literal["exact", "paper"] = "exact"
    """exact weighs every group's KL against its saving; paper fuses whole runs but for the last FFN
    of each, split where max_width asks for it."""
    max_width: int = 0
    """Width of a fused FFN at most; 0: any."""
    norm: Literal["folded", "last"] = "folded"
    """Every FFN's own norm folded into its weights, or the last one's for all, as in the paper."""
    keep_layers: bool = False
    """Leave the freed layers in place, empty, as pipeline stages of equal depth want it."""
    repair_tokens: int = 32_768
    """Training text on which a fused FFN is refitted to what the FFNs gave in a row; 0: none."""
    tokens: int = 16_384
    """Held-out text on which groups are judged."""
    dependency_tokens: int = 4096
    """Held-out text of the block-dependency matrix; 0: leave it out."""
    seq_len: int = 256
    """Tokens of one row."""
    batch_rows: int = 16
    """Rows of one forward."""
    scenario: str = ""
    """Where the time is measured, before and after; the first one counts for the choice. Empty:
    batch=1/64,in=64,out=64,dtype=fp32 on the device at hand."""
    rounds: int = 9
    """Interleaved measurements; medians count."""

    def __post_init__(self) -> None:
        ways = [name for name in ("target", "groups") if getattr(self, name)]
        papers = ["the paper's rule"] if self.rule == "paper" else []
        if len(ways + papers) > 1:
            raise ValueError(
                f"fuse: {' and '.join([*ways, *papers])}; give a target, groups of "
                "your own or the paper's rule, one of them"
            )
        if self.max_kl < 0 or self.max_width < 0 or self.rounds < 1 or self.batch_rows < 1:
            raise ValueError(
                f"fuse: max_kl {self.max_kl}, max_width {self.max_width}, rounds {self.rounds}, "
                f"batch_rows {self.batch_rows}; the first two are 0 or more, the others at least 1"
            )
        _require_rows(self.seq_len, 2, tokens=self.tokens)
        if self.repair_tokens:
            _require_rows(self.seq_len, 2, repair_tokens=self.repair_tokens)
        if self.dependency_tokens:
            _require_rows(self.seq_len, dependency_tokens=self.dependency_tokens)


@dataclass(frozen=True, kw_only=True)
class AssembleSettings:
    """Build a solution from the parent's weights, repaired layer by layer."""

    solution: int = 0
    """Which solution, counted from the best."""
    repair: bool = True
    """Refit output matrices in closed form, each on the child's own activations."""
    tokens: int = 32_768
    """Calibration tokens of the repair."""
    judge: Literal["estimate", "replay"] = "estimate"
    """A refit stays where it lowers the KL: estimated to second order, or replayed to the end."""
    seq_len: int = 256
    """Tokens of one row."""
