"""What compressing a parent will take and can reach, from its config alone: no weights, no torch.

Every second is a roofline, max(FLOPs / peak, bytes / bandwidth), so the plan says what is possible
and its shape, not what will be measured. Its "score" is a proxy, the share of the parent's block
parameters that is removed; only `rank` and `score` know quality.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fretsaw.distill.budget import USABLE, Rung, first_that_fits, ladder
from fretsaw.hardware import Device, find_device
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.size import (
    BYTES_PER_ELEMENT,
    block_flops,
    forward_flops,
    head_flops,
    num_params,
)
from fretsaw.progress import format_seconds
from fretsaw.puzzle.roofline import roofline_table
from fretsaw.puzzle.search import Infeasible, Solution, search_table, smallest_cost
from fretsaw.puzzle.space import default_alternatives
from fretsaw.puzzle.table import Table
from fretsaw.scenario import MIB, Scenario, limits, parse_targets
from fretsaw.training.memory import trained_bytes

EFFICIENCY = 0.4  # of peak FLOP/s that training and scoring reach
DISK_BYTES_PER_S = 1e9
SEQUENCE = 256  # tokens a calibration and distillation sequence has, by default
CHUNK = 1024  # tokens whose logits are in memory at once
MICRO_BATCH = 2048  # tokens of one distillation micro-batch, by default
EVAL_TOKENS = 131_072
COST_SAMPLES = 9  # interleaved measurements of a cost
SPEEDUPS = (1.25, 1.5, 2.0, 3.0)

Alternatives = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage holds in memory, how long it computes and what it leaves on disk."""

    name: str
    weights_mib: float = 0.0
    activations_mib: float = 0.0  # the frontier, Gram matrices, keys and values
    optimizer_mib: float = 0.0  # gradients, and Adam's two moments
    logits_mib: float = 0.0  # one vocabulary chunk, teacher's and student's
    seconds: float
    disk_mib: float

    @property
    def memory_mib(self) -> float:
        """All of it together."""
        return self.weights_mib + self.activations_mib + self.optimizer_mib + self.logits_mib


@dataclass(frozen=True)
class Point:
    """The child that keeps most parameters at a speed-up, by roofline."""

    quantity: str  # decode or prefill
    speedup: float
    is_largest: bool  # the largest reachable: a limit of the search space, not a goal
    params_share: float | None  # of all the parent's parameters; None where out of reach
    memory_share: float | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A compression foreseen."""

    config: ModelConfig
    scenario: Scenario
    device: Device
    target: str
    alternatives: Alternatives
    space_log10: float  # log10 of the number of children
    parent_costs: dict[str, float]
    child: Solution | None  # the one at the target
    infeasible: str | None  # why there is none
    stages: tuple[StagePlan, ...]
    rungs: tuple[Rung, ...]  # settings of the distillation, the plainest first
    front: tuple[Point, ...]


def _front(table: Table, parent: dict[str, float]) -> tuple[Point, ...]:
    points = []
    for quantity in ("decode", "prefill"):
        cost = f"{quantity}_ms"
        fastest = smallest_cost(table, cost)
        largest = parent[cost] / fastest
        for speedup in (*SPEEDUPS, largest):
            bound = fastest if speedup == largest else parent[cost] / speedup
            params_share, memory_share = None, None
            if speedup <= largest:
                costs = search_table(table, {cost: bound})[0].costs
                params_share = costs["params"] / parent["params"]
                memory_share = costs["memory_mib"] / parent["memory_mib"]
            is_largest = speedup == largest
            points.append(Point(quantity, speedup, is_largest, params_share, memory_share))
    return tuple(points)


# --- stages ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What the stages' forecasts are made from."""

    parent: ModelConfig
    child: ModelConfig
    scenario: Scenario
    device: Device
    alternatives: Alternatives
    calibration_tokens: int
    distill_tokens: int
    seq_len: int

    def weights_mib(self, config: ModelConfig) -> float:
        """Weights as every stage loads them, in fp32 whatever the scenario serves."""
        return 4 * num_params(config) / MIB

    def seconds(self, flops: float) -> float:
        return flops / (EFFICIENCY * self.device.flops(self.scenario.dtype))

    @property
    def frontier_mib(self) -> float:
        """Hidden states of all calibration tokens at one layer, in fp32: read, and written."""
        return 2 * self.calibration_tokens * 4 * self.parent.hidden_size / MIB

    @property
    def gram_mib(self) -> float:
        """One layer's Gram matrix and its Cholesky factor, in fp32."""
        return 2 * 4 * max(block.intermediate_size for block in self.parent.blocks) ** 2 / MIB

    @property
    def gram_flops(self) -> float:
        """FLOPs to gather the FFNs' Gram matrices, X^T X, over the calibration tokens."""
        return sum(2 * self.calibration_tokens * b.intermediate_size**2 for b in self.parent.blocks)

    @property
    def logits_mib(self) -> float:
        """Teacher's and student's logits of one chunk, in fp32."""
        return 2 * 4 * CHUNK * self.parent.vocab_size / MIB

    def forward_flops(self, config: ModelConfig) -> float:
        """FLOPs of one token in a sequence, its mean causal context being half of that."""
        return forward_flops(config, context=self.seq_len / 2)


def _rank(work: _Work) -> StagePlan:
    flops = work.calibration_tokens * work.forward_flops(work.parent) + work.gram_flops
    per_layer = [b.intermediate_size + b.num_key_value_heads for b in work.parent.blocks]
    return StagePlan(
        name="rank",
        weights_mib=work.weights_mib(work.parent),
        activations_mib=work.frontier_mib + work.gram_mib,
        seconds=work.seconds(flops),
        disk_mib=12 * sum(per_layer) / MIB,  # an importance and a place in the order
    )


def _score(work: _Work) -> StagePlan:
    """Replay: a candidate of layer i runs layers i to the last, and the head."""
    parent, num_candidates = work.parent, sum(len(names) - 1 for names in work.alternatives)
    per_block = [block_flops(parent, b, context=work.seq_len / 2).total for b in parent.blocks]
    replayed = sum((i + 1) * flops for i, flops in enumerate(per_block))
    heads = parent.num_hidden_layers * head_flops(parent)
    teacher = work.forward_flops(parent) + heads
    flops = num_candidates * (replayed + heads) + teacher
    return StagePlan(
        name="score",
        weights_mib=work.weights_mib(parent),
        activations_mib=1.5 * work.frontier_mib + work.gram_mib,  # the last hidden states too
        logits_mib=work.logits_mib,
        seconds=work.seconds(work.calibration_tokens * flops + work.gram_flops),
        disk_mib=200 * parent.num_hidden_layers * num_candidates / MIB,
    )


def _cost(work: _Work, table: Table) -> StagePlan:
    """Each distinct subblock is timed in stacks of eight; a prefill warms up before it counts."""
    distinct = [a.costs for subblock in table.layers[0].values() for a in subblock.values()]
    pass_ms = [
        2 * c["prefill_ms"] + 5 * c["decode_ms"] / work.scenario.output_tokens for c in distinct
    ]
    largest = max(costs["memory_mib"] for costs in distinct)
    params_mib = max(c["params"] for c in distinct) * BYTES_PER_ELEMENT[work.scenario.dtype] / MIB
    return StagePlan(
        name="cost",
        weights_mib=8 * params_mib,
        activations_mib=8 * max(0.0, largest - params_mib),
        seconds=COST_SAMPLES * 8 * sum(pass_ms) / 1e3,
        disk_mib=200 * len(distinct) / MIB,
    )


def _search(work: _Work) -> StagePlan:
    figures = work.parent.num_hidden_layers * sum(len(names) for names in work.alternatives)
    return StagePlan(
        name="search", activations_mib=64, seconds=0.3 * figures / 448, disk_mib=200 * figures / MIB
    )


def _assemble(work: _Work) -> StagePlan:
    """Sequential repair, parent and child side by side layer by layer, then one child saved."""
    both = work.forward_flops(work.parent) + work.forward_flops(work.child)
    child_mib = work.weights_mib(work.child)
    moved_s = (work.weights_mib(work.parent) + child_mib) * MIB / DISK_BYTES_PER_S
    return StagePlan(
        name="assemble",
        weights_mib=work.weights_mib(work.parent) + child_mib,
        activations_mib=2 * work.frontier_mib + work.gram_mib,
        seconds=work.seconds(work.calibration_tokens * both + work.gram_flops) + moved_s,
        disk_mib=child_mib,
    )


def _distill(work: _Work, rung: Rung) -> StagePlan:
    """The student's forward and backward (twice that), and the live teacher's forward.

    Blocks that are run again cost one forward more. On disk: the child, and while it runs two
    resume states of weights and moments and the best weights.
    """
    held, shape = rung.bytes, rung.shape
    passes = 4 if shape.activation_checkpointing else 3
    flops = passes * work.forward_flops(work.child)
    flops += work.forward_flops(work.parent) if shape.teacher is not None else 0
    weights, optimizer = held.weights + held.teacher, held.gradients + held.moments
    child_mib = num_params(work.child) * BYTES_PER_ELEMENT[work.scenario.dtype] / MIB
    trained, moments = trained_bytes(work.child, shape.update, shape.lora)
    return StagePlan(
        name="distill",
        weights_mib=weights / MIB,
        activations_mib=(held.peak - weights - optimizer - held.logits) / MIB,
        optimizer_mib=optimizer / MIB,
        logits_mib=held.logits / MIB,
        seconds=work.seconds(work.distill_tokens * flops),
        disk_mib=child_mib + (2 * (trained + moments) + trained) / MIB,
    )


def _eval(work: _Work) -> StagePlan:
    both = work.forward_flops(work.parent) + work.forward_flops(work.child)
    return StagePlan(
        name="eval",
        weights_mib=work.weights_mib(work.parent) + work.weights_mib(work.child),
        activations_mib=4 * MICRO_BATCH * work.parent.hidden_size / MIB,
        logits_mib=work.logits_mib,
        seconds=work.seconds(EVAL_TOKENS * both),
        disk_mib=0.1,
    )


# --- the plan -------------------------------------------------------------------------------------


def make_plan(
    config: ModelConfig,
    *,
    scenario: Scenario,
    target: str,
    calibration_tokens: int,
    distill_tokens: int,
    seq_len: int = SEQUENCE,
    micro_batch_tokens: int = MICRO_BATCH,
    alternatives: Alternatives | None = None,
) -> Plan:
    """Foresee the compression of a parent, in seconds and without its weights.

    Where the target is out of reach by roofline the plan says why and sizes the later stages for a
    child as large as the parent. Raises `ValueError` for a target that is not understood and for a
    device that hardware.py does not list.
    """
    device, targets = find_device(scenario.device), parse_targets(target)
    scenario.check_context(config.max_position_embeddings)
    alternatives = alternatives or default_alternatives(config)
    table = roofline_table(config, alternatives, scenario)
    own = roofline_table(config, _own_names(config), scenario)
    parent_costs = _parent_costs(config, own)
    child, infeasible = None, None
    try:
        child = search_table(table, limits(targets, parent_costs))[0]
    except Infeasible as error:
        infeasible = str(error)
    choices = child.choices if child else [(b.attention_name, b.ffn_name) for b in config.blocks]
    blocks = blocks_from_names((choice[0], choice[1]) for choice in choices)
    work = _Work(
        config,
        replace(config, blocks=blocks),
        scenario,
        device,
        alternatives,
        calibration_tokens,
        distill_tokens,
        seq_len,
    )
    rungs = ladder(
        work.child,
        config,
        dtype=scenario.dtype,
        micro_batch_tokens=micro_batch_tokens,
        seq_len=seq_len,
    )
    attention, ffn = alternatives
    return Plan(
        config=config,
        scenario=scenario,
        device=device,
        target=target,
        alternatives=alternatives,
        space_log10=config.num_hidden_layers * math.log10(len(attention) * len(ffn)),
        parent_costs=parent_costs,
        child=child,
        infeasible=infeasible,
        stages=(
            _rank(work),
            _score(work),
            _cost(work, table),
            _search(work),
            _assemble(work),
            _distill(work, first_that_fits(rungs, device.total_memory_bytes) or rungs[-1]),
            _eval(work),
        ),
        rungs=tuple(rungs),
        front=_front(table, parent_costs),
    )


def _own_names(config: ModelConfig) -> Alternatives:
    attention = dict.fromkeys(block.attention_name for block in config.blocks)
    return tuple(attention), tuple(dict.fromkeys(block.ffn_name for block in config.blocks))


def _parent_costs(config: ModelConfig, own: Table) -> dict[str, float]:
    costs = dict(own.fixed)
    for block, layer in zip(config.blocks, own.layers, strict=True):
        for subblock, name in (("attention", block.attention_name), ("ffn", block.ffn_name)):
            for cost, value in layer[subblock][name].costs.items():
                costs[cost] += value
    return costs


# --- text -----------------------------------------------------------------------------------------


def render_plan(plan: Plan) -> str:
    """Write the plan as aligned text for a terminal of 100 columns."""
    config, parent = plan.config, plan.parent_costs
    attention, ffn = plan.alternatives
    lines = [
        f"parent     {num_params(config) / 1e9:.3g}B parameters, {config.num_hidden_layers} layers",
        f"scenario   {plan.scenario}",
        f"target     {plan.target}",
        f"attention  {' '.join(attention)}",
        f"ffn        {' '.join(ffn)}",
        f"space      10^{plan.space_log10:.0f} children",
        "",
        f"{'stage':<10}{'weights':>11}{'activat.':>11}{'optimizer':>11}{'logits':>9}"
        f"{'memory MiB':>12}{'time':>13}{'disk MiB':>12}",
    ]
    for s in plan.stages:
        too_much = s.memory_mib * MIB > plan.device.total_memory_bytes
        lines.append(
            f"{s.name:<10}{s.weights_mib:>11,.0f}{s.activations_mib:>11,.0f}"
            f"{s.optimizer_mib:>11,.0f}{s.logits_mib:>9,.0f}{s.memory_mib:>12,.0f}"
            f"{format_seconds(s.seconds):>13}{s.disk_mib:>12,.1f}" + ("  !" if too_much else "")
        )
    memory_mib = plan.device.total_memory_bytes / MIB
    total_s, disk_mib = sum(s.seconds for s in plan.stages), sum(s.disk_mib for s in plan.stages)
    lines += [
        f"{'in all':<64}{format_seconds(total_s):>13}{disk_mib:>12,.1f}",
        f"(! = more than the {memory_mib:,.0f} MiB of {plan.scenario.device}; times at "
        f"{EFFICIENCY:.0%} of peak)",
        "",
        "at the scenario, by roofline:",
        f"{'':<10}{'prefill ms':>14}{'decode ms':>14}{'memory MiB':>14}{'params':>10}",
        _costs_line("parent", parent),
    ]
    lines.append(_costs_line("child", plan.child.costs) if plan.child else f"{plan.infeasible}")
    lines += _rung_lines(plan)
    lines += ["", "reachable by roofline (quality unknown: most parameters kept is only a proxy):"]
    lines.append(f"{'speed-up':<24}{'params kept':>14}{'memory kept':>14}")
    for p in plan.front:
        label = f"{p.speedup:.4g}x {p.quantity}" + (" (the most)" if p.is_largest else "")
        if p.params_share is None or p.memory_share is None:
            lines.append(f"{label:<24}{'out of reach':>14}")
        else:
            lines.append(f"{label:<24}{p.params_share:>14.1%}{p.memory_share:>14.1%}")
    return "\n".join(lines)


def _rung_lines(plan: Plan) -> list[str]:
    """Say what the distillation holds with ever more frugal settings, and which is planned for."""
    memory, shape = plan.device.total_memory_bytes, plan.rungs[0].shape
    lines = [
        "",
        f"healing in micro-batches of {shape.micro_batch_tokens:,} and rows of {shape.seq_len:,}",
        "(options of `fretsaw distill`, each with those above it)",
        f"{'memory MiB':>10}{'host MiB':>10}",
    ]
    chosen, before = first_that_fits(plan.rungs, memory), ""
    for rung in plan.rungs:
        option = rung.options.removeprefix(before).strip() or "(none)"
        mark = "  <- the plainest that fits" if rung is chosen else ""
        held, host = rung.bytes.peak / MIB, rung.bytes.host / MIB
        lines.append(f"{held:>10,.0f}{host:>10,.0f}  {option}{mark}")
        before = rung.options
    if chosen is None:
        lines.append(
            f"(none fits {USABLE:.0%} of {plan.scenario.device}; take smaller micro-batches)"
        )
    return lines


def _costs_line(name: str, costs: dict[str, float]) -> str:
    return (
        f"{name:<10}{costs['prefill_ms']:>14,.1f}{costs['decode_ms']:>14,.1f}"
        f"{costs['memory_mib']:>14,.0f}{costs['params'] / 1e9:>9.4g}B"
    )
