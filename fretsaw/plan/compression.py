"""What compressing a parent will take and can reach, from its config alone: no weights, no torch.

Every second is a roofline, max(FLOPs / peak, bytes / bandwidth), so the plan says what is possible
and its shape, not what will be measured. Its "score" is a proxy, the share of the parent's block
parameters that is removed; only `rank` and `score` know quality.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.budget import USABLE, Rung, first_that_fits, ladder
from fretsaw.distill.settings import DistillSettings, TeachSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.size import num_params
from fretsaw.pipeline.compression import compression
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.forecast import Forecast, foresee
from fretsaw.plan.render import render_forecast
from fretsaw.plan.stages.search import PROXY_GAP
from fretsaw.plan.work import Hardware
from fretsaw.puzzle.costs.closed_form import roofline_table
from fretsaw.puzzle.search.solutions import (
    Infeasible,
    Solution,
    search_table,
    smallest_cost,
)
from fretsaw.puzzle.search.table import Table
from fretsaw.puzzle.settings import AssembleSettings, CostSettings, RankSettings, ScoreSettings
from fretsaw.puzzle.space import default_alternatives
from fretsaw.scenario.hardware import Device, find_device
from fretsaw.scenario.scenario import MIB, Scenario
from fretsaw.scenario.target import limits, parse_targets

SEQUENCE = 256  # tokens a calibration and distillation sequence has, by default
MICRO_BATCH = 2048  # tokens of one distillation micro-batch, by default
EVAL_TOKENS = 131_072
SPEEDUPS = (1.25, 1.5, 2.0, 3.0)

Alternatives = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True)
class FrontPoint:
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
    forecast: Forecast  # of the stages from text to eval
    rungs: tuple[Rung, ...]  # settings of the distillation, the plainest first
    front: tuple[FrontPoint, ...]


def _front(table: Table, parent: dict[str, float]) -> tuple[FrontPoint, ...]:
    points = []
    for quantity in ("decode", "prefill"):
        cost = f"{quantity}_ms"
        fastest = smallest_cost(table, cost)
        largest = parent[cost] / fastest
        for speedup in (*SPEEDUPS, largest):
            bound = fastest if speedup == largest else parent[cost] / speedup
            params_share, memory_share = None, None
            if speedup <= largest:
                costs = search_table(table, {cost: bound}, gap=PROXY_GAP)[0].costs
                params_share = costs["params"] / parent["params"]
                memory_share = costs["memory_mib"] / parent["memory_mib"]
            is_largest = speedup == largest
            points.append(FrontPoint(quantity, speedup, is_largest, params_share, memory_share))
    return tuple(points)


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
) -> Plan:
    """Foresee the compression of a parent, in seconds and without its weights.

    Where the target is out of reach by roofline the plan says why and sizes the later stages for a
    child as large as the parent. Raises `ValueError` for a target that is not understood and for a
    device that hardware.py does not list.
    """
    amounts = {
        "calibration_tokens": calibration_tokens,
        "distill_tokens": distill_tokens,
        "seq_len": seq_len,
        "micro_batch_tokens": micro_batch_tokens,
    }
    for name, amount in amounts.items():
        if amount < 1:
            raise ValueError(f"plan: {name} {amount}; give 1 or more")
    device, targets = find_device(scenario.device), parse_targets(target)
    scenario.check_context(config.max_position_embeddings)
    alternatives = default_alternatives(config)
    table = roofline_table(config, alternatives, scenario)
    own = roofline_table(config, _own_names(config), scenario)
    parent_costs = _parent_costs(config, own)
    child, infeasible = None, None
    try:
        child = search_table(table, limits(targets, parent_costs), gap=PROXY_GAP)[0]
    except Infeasible as error:
        infeasible = str(error)
    choices = child.choices if child else [(b.attention_name, b.ffn_name) for b in config.blocks]
    blocks = blocks_from_names((choice[0], choice[1]) for choice in choices)
    rungs = ladder(
        replace(config, blocks=blocks),
        config,
        dtype=scenario.dtype,
        micro_batch_tokens=micro_batch_tokens,
        seq_len=seq_len,
    )
    rung = first_that_fits(rungs, device.total_memory_bytes) or rungs[-1]
    stages = _stages(target, scenario, calibration_tokens, distill_tokens, rung)
    hardware = Hardware(device, "fp32" if scenario.dtype == "fp32" else "bf16")
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
        forecast=foresee(stages, hardware, lambda _: config),
        rungs=tuple(rungs),
        front=_front(table, parent_costs),
    )


def _stages(
    target: str, scenario: Scenario, calibration_tokens: int, distill_tokens: int, rung: Rung
) -> list[Stage]:
    """Return the stages from text to eval, the healing as a rung of the ladder says."""
    shape = rung.shape
    seq_len, micro = shape.seq_len, shape.micro_batch_tokens
    train = TrainSettings(
        tokens=max(distill_tokens, micro),
        seq_len=seq_len,
        batch_tokens=micro,
        micro_batch_tokens=micro,
        heldout_every=max(1, distill_tokens // micro // 10),
        update=shape.update,
        lora=shape.lora,
        activation_checkpointing=shape.activation_checkpointing,
    )
    is_stored = shape.teacher is None
    healing = DistillSettings(
        train=train, teacher_dtype=shape.teacher_dtype, cosine_weight=0.0 if is_stored else 1.0
    )
    tokens = calibration_tokens
    stages = compression(
        parent="parent",
        target=target,
        scenario=str(scenario),
        in_8_bits=(),
        under="child",
        rank=RankSettings(tokens=tokens, seq_len=seq_len),
        score=ScoreSettings(tokens=tokens, repair_tokens=tokens, seq_len=seq_len),
        cost=CostSettings(scenario=str(scenario)),
        assemble=AssembleSettings(tokens=tokens, seq_len=seq_len),
        distill=healing,
        evaluate=EvalSettings(tokens=EVAL_TOKENS, seq_len=seq_len),
    )
    stages = [one for one in stages if one.kind not in ("bench", "report")]
    text_settings = CorpusSettings(max_tokens=train.tokens, seq_len=seq_len)
    corpus = Stage("corpus", text_settings, {"parent": "parent"})
    teaching = TeachSettings(tokens=train.tokens, seq_len=seq_len, micro_batch_tokens=micro)
    taught = Stage("teach", teaching, {"parent": "parent", "corpus": "corpus"})
    found = []
    for stage in stages:
        if stage.kind == "distill" and is_stored:
            found.append(taught)
            stage = replace(stage, inputs={**stage.inputs, "teacher": "teach"})
        found.append(stage)
    return [corpus, *found]


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
        render_forecast(plan.forecast, title="from text to a healed child"),
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
