"""What every kind of stage does and holds, in closed form: from settings and shapes, no weights.

A stage's time is its FLOPs at a share of the peak, and what is bound by bandwidth (decoding) by
roofline; only an earlier run or a rehearsal knows more (`calibration.py`). Standard library only.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fretsaw.bench.settings import BenchSettings
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.distill.budget import first_that_fits, ladder
from fretsaw.distill.settings import DistillSettings, TeachSettings, TrainSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.size import (
    BYTES_PER_ELEMENT,
    block_flops,
    forward_flops,
    head_flops,
    kv_bytes,
    num_params,
)
from fretsaw.plan.work import Hardware, Phase, Shapes, Work
from fretsaw.puzzle.costs.probes import alternative_names, stacks, whole_models
from fretsaw.puzzle.library.runs import find_runs
from fretsaw.puzzle.settings import (
    AssembleSettings,
    BldSettings,
    CostSettings,
    FuseSettings,
    RankSettings,
    ScoreSettings,
    SearchSettings,
    VerifySettings,
)
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.rl.settings import RlSettings
from fretsaw.scenario.memory import gram_bytes, network_memory
from fretsaw.scenario.roofline import network_ms
from fretsaw.scenario.scenario import MIB, Scenario, parse_scenarios
from fretsaw.sft.settings import MAX_ROW, SftSettings
from fretsaw.training.settings import UpdateSettings
from fretsaw.training.step_memory import (
    Precision,
    TrainingShape,
    trained_bytes,
    training_bytes,
)

DISK_BYTES_PER_S = 1e9
TEXT_TOKENS_PER_S = 2e5  # read and tokenised
SERVER_START_S = 60.0
CHUNK = 1024  # tokens whose logits are in memory at once
EVAL_BATCH = 128  # sequences decoded together
PROMPT = 64  # tokens of a problem
ROW_TOKENS = 60  # of a generated conversation
BYTES_A_TOKEN = 4  # of text in files
TIMED_PASSES = 5  # decoding steps of one timing


# --- parts ----------------------------------------------------------------------------------------


def _held(*configs: ModelConfig, width: float = 4.0) -> float:
    """Return the bytes of weights as stages load them: in fp32."""
    return width * sum(map(num_params, configs))


def _frontier(config: ModelConfig, tokens: float) -> float:
    """Return the hidden states of a text at one layer, in fp32: read, and written."""
    return 2 * tokens * 4 * config.hidden_size


def _gram(config: ModelConfig) -> float:
    """Return what refitting the widest FFN takes."""
    return gram_bytes(max(block.intermediate_size for block in config.blocks))


def _gram_flops(config: ModelConfig, tokens: float) -> float:
    """FLOPs of every FFN's X^T X."""
    return sum(2 * tokens * block.intermediate_size**2 for block in config.blocks)


def _logits(config: ModelConfig, tokens: float = CHUNK, copies: int = 2) -> float:
    return copies * 4 * tokens * config.vocab_size


def _forward(config: ModelConfig, seq_len: float) -> float:
    """FLOPs of one token in a row, its mean causal context being half of that."""
    return forward_flops(config, context=seq_len / 2)


def _decoding(
    config: ModelConfig, on: Hardware, sequences: float, prompt: int, tokens: int, batch: int
) -> float:
    """Seconds in which so many sequences are read and continued, by roofline on one device."""
    if sequences <= 0 or tokens <= 0:
        return 0.0
    together = max(1, min(batch, round(sequences)))
    scenario = on.scenario(batch=together, prompt_tokens=prompt, output_tokens=tokens)
    return sequences / together * sum(network_ms(config, scenario).values()) / 1e3


def _replay_flops(config: ModelConfig, seq_len: int, layers: Sequence[int] | None = None) -> float:
    """FLOPs a token of one candidate in each layer: its layer to the last, and the head."""
    per_block = [block_flops(config, b, context=seq_len / 2).total for b in config.blocks]
    chosen = range(len(per_block)) if layers is None else layers
    return sum(sum(per_block[i:]) + head_flops(config) for i in chosen)


def _saved(config: ModelConfig, on: Hardware) -> float:
    return _held(config, width=BYTES_PER_ELEMENT["fp32"])


# --- text and training ----------------------------------------------------------------------------


def corpus(s: CorpusSettings, at: Shapes, on: Hardware) -> Work:
    """Reading and tokenising; a text of the parent's own is decoded."""
    tokens = s.max_tokens + s.heldout_tokens
    seconds = tokens / TEXT_TOKENS_PER_S
    phases: tuple[Phase, ...] = ()
    if s.source == "self" and "parent" in at:
        parent = at["parent"]
        length = min(s.sample_length, s.max_tokens)
        seconds += _decoding(parent, on.alone, tokens / length, 1, length, EVAL_BATCH)
        cache = EVAL_BATCH * length * kv_bytes(parent, "fp32")
        phases = (Phase(weights=_held(parent), cache=cache),)
    return Work(phases=phases, tokens=tokens, seconds=seconds, disk=4 * tokens)


def _training(
    s: TrainSettings,
    student: ModelConfig,
    on: Hardware,
    *,
    teacher: ModelConfig | None = None,
    teacher_dtype: Precision = "fp32",
    cosine: bool = False,
    remedy: str = "",
) -> Work:
    """Steps and held-out measurements; weights, gradients and moments are split among devices."""
    longest = max(phase.seq_len for phase in s.phases)
    shape = TrainingShape(
        student=student,
        teacher=teacher,
        teacher_dtype=teacher_dtype,
        update=s.update,
        lora=s.lora,
        dtype="bf16" if on.dtype == "bf16" else "fp32",
        micro_batch_tokens=s.micro_batch_tokens,
        seq_len=longest,
        cosine=cosine,
        activation_checkpointing=s.activation_checkpointing,
    )
    held, passes = training_bytes(shape), 4 if s.activation_checkpointing else 3
    flops = 0.0
    for phase in s.phases:
        reading = _forward(teacher, phase.seq_len) if teacher else 0.0
        flops += phase.tokens * (passes * _forward(student, phase.seq_len) + reading)
    measured = s.heldout_tokens * (s.num_steps / s.heldout_interval + 1)
    reading = _forward(student, s.seq_len) + (_forward(teacher, s.seq_len) if teacher else 0.0)
    trained, moments = trained_bytes(student, s.update, s.lora)
    split = (held.weights + held.teacher, held.gradients + held.moments)
    rest = held.peak - sum(split) - held.logits
    phase = Phase("", split[0] / on.count, rest, split[1] / on.count, held.logits)
    return Work(
        phases=(phase,),
        tokens=sum(phase.tokens for phase in s.phases),
        seconds=on.seconds(flops + measured * reading),
        disk=_saved(student, on) + 2 * (trained + moments) + trained,
        remedy=remedy or _frugal(s.update, phase, s),
    )


def _frugal(update: UpdateSettings, held: Phase, s: TrainSettings | None = None) -> str:
    """Name what makes a step smaller, what is largest first, of what is not set already."""
    lighter = [] if update.states == "int8" else ["set update.states=int8"]
    lighter += [] if update.master == "bf16" else ["set update.master=bf16"]
    shorter = ["shorten seq_len and micro_batch_tokens"]
    if s is not None and not s.activation_checkpointing:
        shorter.insert(0, "set activation_checkpointing")
    is_long = held.activations > held.weights + held.optimizer
    return ", ".join(shorter + lighter if is_long else lighter + shorter)


def train_alone(s: Any, at: Shapes, on: Hardware) -> Work:
    """Pretraining (from settings alone), and going on with it."""
    return _training(s.train, at["model"], on)


def distill(s: DistillSettings, at: Shapes, on: Hardware) -> Work:
    """The student's step and the live teacher's forward, unless its answers are stored."""
    parent = at["parent"] if "parent" in at and "teacher" not in at and s.needs_teacher else None
    cosine = s.cosine_weight > 0
    work = _training(
        s.train, at["child"], on, teacher=parent, teacher_dtype=s.teacher_dtype, cosine=cosine
    )
    if parent is None:
        return work
    rungs = ladder(
        at["child"],
        parent,
        dtype=on.dtype,
        micro_batch_tokens=s.train.micro_batch_tokens,
        seq_len=s.train.seq_len,
    )
    fits = first_that_fits(rungs, on.device.memory_bytes)
    options = f"`fretsaw distill {fits.options}` would fit one device" if fits else None
    return replace(work, remedy=options or work.remedy)


def teach(s: TeachSettings, at: Shapes, on: Hardware) -> Work:
    """The parent reads the text once; its likeliest tokens are stored."""
    parent, tokens = at["parent"], s.tokens + s.heldout_tokens
    states = 4 * s.micro_batch_tokens * 4 * parent.hidden_size
    return Work(
        phases=(Phase("", _held(parent), states, logits=_logits(parent)),),
        tokens=tokens,
        seconds=on.alone.seconds(tokens * _forward(parent, s.seq_len)),
        disk=tokens * (s.top_k * 6 + 8),
    )


def sft(s: SftSettings, at: Shapes, on: Hardware) -> Work:
    """Packed rows of conversations, as many as the files' bytes tell, or the settings."""
    model = at["model"]
    seq_len = s.seq_len or min(MAX_ROW, model.max_position_embeddings)
    generated = s.num_rows * (ROW_TOKENS if s.source == "world" else seq_len)
    rows = at.text_bytes // BYTES_A_TOKEN if s.source == "files" and at.text_bytes else generated
    tokens = max(s.batch_tokens, seq_len, s.epochs * rows)
    micro = max(1, s.micro_batch_tokens // seq_len) * seq_len  # whole rows
    batch = max(1, s.batch_tokens // micro) * micro
    train = TrainSettings(
        tokens=max(tokens, batch),
        seq_len=seq_len,
        batch_tokens=batch,
        micro_batch_tokens=micro,
        heldout_tokens=max(seq_len, round(s.heldout_share * tokens)),
        update=s.update,
    )
    work = _training(train, model, on)
    return replace(work, remedy=_frugal(s.update, work.phases[0]))  # it can't run blocks again


def rl(s: RlSettings, at: Shapes, on: Hardware) -> Work:
    """Sampling (answers half as long as they may be), then updates; measured now and then."""
    model, answers = at["model"], s.prompts_per_rollout * s.group_size
    length, row = max(1, s.max_tokens // 2), PROMPT + s.max_tokens
    sampled = s.num_rollouts * answers
    measured = 2 * s.heldout_problems * (s.num_rollouts // s.heldout_every + 2)
    sampling = _decoding(model, on.alone, sampled + measured, PROMPT, length, s.max_batch)
    passes = 4 + (s.kl_coef > 0)  # forward and backward, the old probabilities, the reference's
    read = sampled * (PROMPT + length)
    flops = read * passes * _forward(model, PROMPT + length)
    micro = max(s.micro_batch_tokens, row)
    shape = TrainingShape(
        student=model,
        teacher=model if s.kl_coef > 0 else None,
        update=s.update,
        dtype="bf16" if on.dtype == "bf16" else "fp32",
        micro_batch_tokens=micro,
        seq_len=row,
        cosine=False,
    )
    held = training_bytes(shape)
    weights, optimizer = held.weights + held.teacher, held.gradients + held.moments
    cache = min(s.max_batch, answers) * row * kv_bytes(model, "fp32")
    trained, moments = trained_bytes(model, s.update, shape.lora)
    rest = held.peak - weights - optimizer - held.logits
    update = Phase("update", weights, rest, optimizer, held.logits)
    return Work(
        phases=(
            Phase("sampling", weights + _held(model), 0.0, held.moments, cache=cache),
            update,
        ),
        tokens=(sampled + measured) * (PROMPT + length),
        seconds=sampling + on.alone.seconds(flops),
        disk=_saved(model, on) + 2 * (trained + moments) + trained,
        remedy=f"lower max_batch, {_frugal(s.update, update)}",
    )


# --- compression ----------------------------------------------------------------------------------


def rank(s: RankSettings, at: Shapes, on: Hardware) -> Work:
    """One pass of the parent over the calibration text, with Gram matrices."""
    parent = at["parent"]
    flops = s.tokens * _forward(parent, s.seq_len) + _gram_flops(parent, s.tokens)
    if s.channels != "contribution":  # channels are dropped one by one, each a rank-one update
        flops += sum(block.intermediate_size**3 for block in parent.blocks)
    per_layer = [b.intermediate_size + b.num_key_value_heads for b in parent.blocks]
    return Work(
        phases=(Phase("", _held(parent), _frontier(parent, s.tokens) + _gram(parent)),),
        tokens=s.tokens,
        seconds=on.alone.seconds(flops),
        disk=12 * sum(per_layer),  # an importance and a place in the order
        remedy="lower tokens, which the frontier is as long as",
    )


def bld(s: BldSettings, at: Shapes, on: Hardware) -> Work:
    """Every alternative of every layer, forward and backward, on the parent's states."""
    parent = at["parent"]
    flops = s.tokens * _forward(parent, s.seq_len)
    for block in parent.blocks:
        attention, ffn = layer_alternatives(block, replace(s.space, precisions=()))
        for a, f in [(a, ffn[0]) for a in attention[1:]] + [(attention[0], f) for f in ffn[1:]]:
            shape = BlockConfig.from_names(a, f)
            flops += 3 * s.tokens * block_flops(parent, shape, context=s.seq_len / 2).total
    frontier = min(s.frontier_mib * MIB, _frontier(parent, s.tokens))
    largest = max(_held(replace(parent, blocks=(block,))) for block in parent.blocks)
    return Work(
        phases=(Phase("", _held(parent), frontier, 4 * largest),),
        tokens=s.tokens,
        seconds=on.seconds(flops),
        disk=_held(parent),
    )


def score(s: ScoreSettings, at: Shapes, on: Hardware) -> Work:
    """Replay: a candidate of layer i runs layers i to the last, and the head; refits twice more."""
    parent = at["parent"]
    names = [layer_alternatives(block, s.space) for block in parent.blocks]
    counts = [len(a) * len(f) if s.exact else len(a) + len(f) - 2 + s.joint_pairs for a, f in names]
    spans = max(0, s.fused - 1)
    per_block = [block_flops(parent, b, context=s.seq_len / 2).total for b in parent.blocks]
    judged = s.repair_tokens / 8 * 2 * (1 + s.ahead)  # by the KL before and after every refit
    exams = 0.0
    if s.metric == "accuracy":
        put = (sum(counts) + 1) * s.num_problems
        exams = _decoding(parent, on.alone, put, PROMPT, s.max_new_tokens, EVAL_BATCH)
    flops = s.tokens * _forward(parent, s.seq_len)
    for i, count in enumerate(counts):
        replayed = sum(per_block[i:]) + head_flops(parent)
        fitted = 2 * (1 + s.ahead) * s.repair_tokens * per_block[i]
        gram = 2 * s.repair_tokens * parent.blocks[i].intermediate_size ** 2
        flops += (count + 2 * spans) * ((s.tokens + judged) * replayed + fitted + gram)
    return Work(
        phases=(
            Phase(
                "",
                _held(parent),
                1.5 * _frontier(parent, s.tokens + s.repair_tokens) + _gram(parent),
                logits=_logits(parent, s.batch_rows * s.seq_len, 4),
            ),
        ),
        tokens=(s.tokens + s.repair_tokens) * sum(counts),
        seconds=on.seconds(flops) + exams / on.count,
        disk=200 * sum(counts) * (1 + s.tokens / s.seq_len / 10),
        remedy="lower tokens, repair_tokens or batch_rows",
    )


def cost(s: CostSettings, at: Shapes, on: Hardware) -> Work:
    """Stacks of the parent's block with every alternative, and whole models, in every round."""
    parent, scenarios = at["parent"], parse_scenarios(s.scenario)
    names = alternative_names(parent, s.space)
    disk = 400.0 * len(names)
    if s.engine == "roofline":
        return Work(seconds=0.1 * len(scenarios), disk=disk)
    models = stacks(parent, names, s.layers) | whole_models(parent, s.space, s.probes, 0)
    configs = [replace(parent, blocks=tuple(blocks)) for blocks in models.values()]
    total_ms, memory = 0.0, 0.0
    for scenario in scenarios:
        here = replace(scenario, device=on.device.name)
        memory = max(memory, *(MIB * network_memory(config, here) for config in configs))
        for config in configs:
            ms = network_ms(config, here)
            steps = TIMED_PASSES / here.output_tokens
            total_ms += 2 * ms["prefill_ms"] + min(1.0, steps) * ms["decode_ms"]
    start = SERVER_START_S * len(models) if s.engine == "vllm" else 0.0
    rows = sum(one.batch for one in scenarios) * s.rounds * len(models)
    return Work(
        phases=(Phase(weights=memory),),
        tokens=rows * max(one.prompt_tokens for one in scenarios),
        seconds=s.rounds * total_ms / 1e3 + start,
        disk=disk,
        remedy="time a smaller batch, or lower layers",
    )


def search(s: SearchSettings, at: Shapes, on: Hardware) -> Work:
    """A few solves of the program, on the host."""
    layers = at["child"].num_hidden_layers
    solves = s.num_solutions + s.pareto_points + 6
    return Work(seconds=0.02 * solves * (1 + layers / 32), disk=4000.0 * layers)


def _assembling(parent: ModelConfig, child: ModelConfig, tokens: float, seq_len: int) -> float:
    """FLOPs of sequential repair, parent and child side by side, each refit judged twice."""
    both = _forward(parent, seq_len) + _forward(child, seq_len)
    judged = 2 * 2 * tokens / 8 * _replay_flops(parent, seq_len)
    return tokens * both + _gram_flops(child, tokens) + judged


def assemble(s: AssembleSettings, at: Shapes, on: Hardware) -> Work:
    """Sequential repair, then one child saved."""
    parent, child = at["parent"], at["search"]
    moved_s = (_held(parent) + _held(child)) / DISK_BYTES_PER_S
    flops = _assembling(parent, child, s.tokens if s.repair else 0, s.seq_len)
    return Work(
        phases=(Phase("", _held(parent, child), 2 * _frontier(parent, s.tokens) + _gram(parent)),),
        tokens=s.tokens,
        seconds=on.alone.seconds(flops) + moved_s,
        disk=_saved(child, on),
        remedy="lower tokens",
    )


def verify(s: VerifySettings, at: Shapes, on: Hardware) -> Work:
    """Whole children assembled and measured."""
    parent, child = at["parent"], at["search"]
    flops = _assembling(parent, child, s.repair_tokens, s.seq_len)
    flops += s.tokens * (_forward(parent, s.seq_len) + _forward(child, s.seq_len))
    children = s.children + s.rounds
    frontier = 2 * _frontier(parent, s.repair_tokens + s.tokens)
    return Work(
        phases=(Phase("", _held(parent, child), frontier + _gram(parent), logits=_logits(parent)),),
        tokens=children * (s.tokens + s.repair_tokens),
        seconds=on.alone.seconds(children * flops),
        disk=2000.0 * parent.num_hidden_layers,
    )


def fuse(s: FuseSettings, at: Shapes, on: Hardware) -> Work:
    """Every contiguous group of every run by replay, then before and after timed in turn."""
    model = at["model"]
    runs = find_runs(model.blocks)
    groups = [i for run in runs for i, _ in itertools.combinations(run, 2)]
    groups = groups if s.rule == "exact" else [run[0] for run in runs]
    judged = s.tokens + s.repair_tokens / 4
    flops = judged * _replay_flops(model, s.seq_len, groups) + _gram_flops(model, s.repair_tokens)
    widths = [sum(model.blocks[i].intermediate_size for i in run) for run in runs]
    fused = min(max(widths), s.max_width or max(widths)) if runs and s.repair_tokens else 0
    default = "batch=1/64,in=64,out=64,dtype=fp32,device=cpu"
    served = [replace(one, device=on.device.name) for one in parse_scenarios(s.scenario or default)]
    timed_ms = sum(2 * s.rounds * sum(network_ms(model, one).values()) for one in served)
    matrix = s.dependency_tokens * _forward(model, s.seq_len) * model.num_hidden_layers
    return Work(
        phases=(
            Phase("", 2 * _held(model),
                  _frontier(model, s.tokens + s.repair_tokens) + gram_bytes(fused),
                  logits=_logits(model, s.batch_rows * s.seq_len)),
        ),
        tokens=(s.tokens + s.repair_tokens) * max(1, len(groups)),
        seconds=on.seconds(flops + matrix) + timed_ms / 1e3,
        disk=_saved(model, on),
        remedy="lower max_width or repair_tokens",
    )  # fmt: skip


def select(s: Any, at: Shapes, on: Hardware) -> Work:
    """The best of the candidates is copied."""
    saved = 2 * _saved(at["child"], on)
    return Work(seconds=saved / DISK_BYTES_PER_S, disk=saved)


# --- what is measured -----------------------------------------------------------------------------


def evaluate(s: EvalSettings, at: Shapes, on: Hardware) -> Work:
    """Text read by model and parent; problems answered by both, with thought and without."""
    models = [at[name] for name in ("model", "parent") if name in at]
    text = s.tokens if "corpus" in at else 0
    tasks = len([name for name in s.task.split(" + ") if name.strip()]) + ("problems" in at)
    answers = 2 * tasks * s.num_problems * s.samples
    flops = sum(text * _forward(model, s.seq_len) for model in models)
    decoding = sum(
        _decoding(model, on.alone, answers, PROMPT, s.max_new_tokens, EVAL_BATCH)
        for model in models
    )
    row = PROMPT + s.max_new_tokens
    cache = min(answers, EVAL_BATCH) * row * kv_bytes(models[0], "fp32")
    logits = 2 * _logits(models[0], s.batch_rows * s.seq_len, len(models)) if text else 0.0
    states = 4 * s.batch_rows * s.seq_len * 4 * models[0].hidden_size
    phases = [Phase("text", _held(*models), states, logits=logits)] if text else []
    phases += [Phase("answers", 2 * _held(*models), cache=cache)] if answers else []
    return Work(
        phases=tuple(phases),
        tokens=len(models) * (text + answers * row),
        seconds=on.alone.seconds(flops) + decoding,
        disk=2e5 + 500 * answers,
        remedy="lower batch_rows (text) or max_new_tokens (answers)",
    )  # fmt: skip


def bench(s: BenchSettings, at: Shapes, on: Hardware) -> Work:
    """Parent twice and child once a round, each reading its prompts twice."""
    served = replace(Scenario.parse(s.scenario), device=on.device.name)
    parent, child = (network_ms(at[name], served) for name in ("parent", "child"))

    def once(ms: Mapping[str, float]) -> float:
        return 2 * ms["prefill_ms"] + ms["decode_ms"]

    total_ms = s.rounds * (2 * once(parent) + once(child)) + once(parent) + once(child)
    tokens = served.batch * (2 * served.prompt_tokens + served.output_tokens)
    weights = [num_params(at[n]) * BYTES_PER_ELEMENT[served.dtype] for n in ("parent", "child")]
    cache = MIB * network_memory(at["parent"], served) - weights[0]
    return Work(
        phases=(Phase(weights=2 * sum(weights), cache=cache),),
        tokens=3 * s.rounds * tokens,
        seconds=total_ms / 1e3,
        disk=1e4,
        remedy="serve a smaller batch",
    )


def report(s: Any, at: Shapes, on: Hardware) -> Work:
    """A page from what is on disk."""
    return Work(seconds=1.5, disk=2e6)


WORK: dict[str, Callable[[Any, Shapes, Hardware], Work]] = {
    "corpus": corpus,
    "pretrain": train_alone,
    "cpt": train_alone,
    "teach": teach,
    "distill": distill,
    "sft": sft,
    "rl": rl,
    "rank": rank,
    "bld": bld,
    "score": score,
    "cost": cost,
    "search": search,
    "verify": verify,
    "assemble": assemble,
    "fuse": fuse,
    "select": select,
    "eval": evaluate,
    "bench": bench,
    "report": report,
}
