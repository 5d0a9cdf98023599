"""Costs from closed forms alone: FLOPs, bytes, launches and all-reduces, on a known device.

Time of a pass on each of n devices in tensor parallel is

    max(FLOPs / (efficiency * peak), bytes / (efficiency * bandwidth)) + launches + all-reduces

Heads, key-value heads and FFN widths are divided by n; every subblock that is there ends in one
all-reduce of the hidden states. Efficiencies are 1 unless fitted: what is possible, not what will
be measured. Standard library only.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from fretsaw.model.config import ModelConfig
from fretsaw.model.size import (
    BYTES_PER_ELEMENT,
    block_flops,
    block_kv_bytes,
    block_matmul_flops,
    head_flops,
)
from fretsaw.model.subblock import subblock
from fretsaw.scenario.hardware import Device, find_device
from fretsaw.scenario.memory import fixed_memory, held_bytes, memory_costs, share
from fretsaw.scenario.scenario import Scenario

LAUNCHES = {"attention": 6, "ffn": 4, "head": 2}  # kernels of a subblock
UNITS = {"prefill_ms": "ms", "decode_ms": "ms", "memory_mib": "MiB", "params": "parameters"}
PHASES = ("prefill_ms", "decode_ms")


@dataclass(frozen=True)
class DeviceWork:
    """What each device does for one part of a network, in one phase of a scenario."""

    flops: float  # in the scenario's precision
    moved_bytes: float  # weights, keys and values read
    launches: float
    all_reduces: float
    reduced_bytes: float  # in all of them together
    fp8_flops: float = 0.0  # of matrices in 8 bits
    int8_flops: float = 0.0

    def times(self, count: float) -> "DeviceWork":
        """Return the work of doing it `count` times over."""
        return DeviceWork(*(count * value for value in astuple(self)))


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What no datasheet states; a device's own estimates, or fitted on measured times."""

    flops_efficiency: float = 1.0
    bandwidth_efficiency: float = 1.0
    launch_s: float
    all_reduce_s: float  # latency of one, whatever its size

    @classmethod
    def of(cls, device: Device) -> "Constants":
        """Return the device's estimates, at full efficiency."""
        return cls(launch_s=device.launch_s, all_reduce_s=device.all_reduce_latency_s)


def seconds(work: DeviceWork, device: Device, dtype: str, constants: Constants) -> float:
    """Return the time of some work, by the formula above."""
    rates = ((work.flops, dtype), (work.fp8_flops, "fp8"), (work.int8_flops, "int8"))
    peak_s = sum(flops / device.flops(kind) for flops, kind in rates)
    compute_s = peak_s * device.count / constants.flops_efficiency
    memory_s = work.moved_bytes / (constants.bandwidth_efficiency * device.memory_bandwidth)
    link_s = work.all_reduces * constants.all_reduce_s + device.transfer_s(work.reduced_bytes)
    return max(compute_s, memory_s) + work.launches * constants.launch_s + link_s


# --- costs ----------------------------------------------------------------------------------------


def roofline_costs(
    config: ModelConfig,
    names: Iterable[str],
    scenario: Scenario,
    constants: Constants | None = None,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return what every child pays, and the costs of each alternative by name.

    Raises ValueError for an unknown device and for sizes that do not divide among several.
    """
    device = find_device(scenario.device)
    chosen = constants or Constants.of(device)

    def milliseconds(work: DeviceWork) -> float:
        return 1e3 * seconds(work, device, scenario.dtype, chosen)

    fixed = {phase: milliseconds(fixed_work(config, scenario, phase)) for phase in PHASES}
    alternatives = {}
    for name in names:
        times = {
            phase: milliseconds(subblock_work(config, name, scenario, phase)) for phase in PHASES
        }
        alternatives[name] = times | memory_costs(config, name, scenario, device.count)
    return fixed | fixed_memory(config, scenario), alternatives


def network_ms(
    config: ModelConfig, scenario: Scenario, constants: Constants | None = None
) -> dict[str, float]:
    """Return the milliseconds of a whole network at a scenario, by phase."""
    names = [n for block in config.blocks for n in (block.attention_name, block.ffn_name)]
    fixed, costs = roofline_costs(config, set(names), scenario, constants)
    return {phase: fixed[phase] + sum(costs[n][phase] for n in names) for phase in PHASES}


# --- work -----------------------------------------------------------------------------------------


def subblock_work(config: ModelConfig, name: str, scenario: Scenario, phase: str) -> DeviceWork:
    """Return what each device does for one alternative in a whole phase.

    Decoding is `out` passes at the middle context, in + out / 2; a prompt's mean causal context is
    half of it.
    """
    if name.endswith("_none"):
        return DeviceWork(0, 0, 0, 0, 0)
    device = find_device(scenario.device)
    count = device.count
    local, block = share(config, subblock(name), count)
    tokens, context, kv_tokens, num_passes = _pass(scenario, phase)
    flops = block_flops(local, block, context=context).total
    matrices = block_matmul_flops(local, block).total
    if not (block.attention_kind.is_llamas and block.ffn_kind.is_llamas):
        flops, matrices = flops / count, matrices / count
    precision = {block.attention_precision, block.ffn_precision} - {"full"}
    in_8_bits = tokens * matrices if precision else 0.0
    width = BYTES_PER_ELEMENT[scenario.dtype]
    kv_bytes = block_kv_bytes(local, block, scenario.dtype)
    weights = held_bytes(local, block, scenario.dtype, count)
    if "int8" in precision and not device.multiplies_int8:
        weights = held_bytes(local, block.stored("full", "full"), "fp32", count)
    return DeviceWork(
        flops=tokens * flops - in_8_bits,
        fp8_flops=in_8_bits if "fp8" in precision else 0.0,
        int8_flops=in_8_bits if "int8" in precision else 0.0,
        moved_bytes=weights + kv_tokens * kv_bytes,
        launches=LAUNCHES["ffn" if name.startswith("ffn") else "attention"],
        all_reduces=float(count > 1),
        reduced_bytes=tokens * config.hidden_size * width,
    ).times(num_passes)


def fixed_work(config: ModelConfig, scenario: Scenario, phase: str) -> DeviceWork:
    """Return what each device does outside the blocks: the head, for one token of every request.

    Several devices share the vocabulary, so the embeddings are summed and the logits gathered.
    """
    count = find_device(scenario.device).count
    width = BYTES_PER_ELEMENT[scenario.dtype]
    tokens, _, _, num_passes = _pass(scenario, phase)
    gathered = scenario.batch * config.vocab_size / 2  # gathering is half of summing
    return DeviceWork(
        flops=scenario.batch * head_flops(config) / count,
        moved_bytes=config.vocab_size * config.hidden_size * width / count,
        launches=LAUNCHES["head"],
        all_reduces=2.0 * (count > 1),
        reduced_bytes=(tokens * config.hidden_size + gathered) * width,
    ).times(num_passes)


def _pass(scenario: Scenario, phase: str) -> tuple[int, float, float, int]:
    """Return tokens, mean context, tokens whose keys and values are read, number of passes."""
    batch, tokens_in, tokens_out = scenario.batch, scenario.prompt_tokens, scenario.output_tokens
    if phase == "prefill_ms":
        return batch * tokens_in, tokens_in / 2, batch * tokens_in, 1
    middle = tokens_in + tokens_out / 2
    return batch, middle, batch * middle, tokens_out
