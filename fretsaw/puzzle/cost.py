"""The cost stage: measured prefill and decode time of every alternative, memory in closed form.

A subblock is timed as the difference between stacks of 2n and n layers that hold nothing else, all
stacks interleaved, medians over rounds. Sums of parts are then calibrated on whole models: the
parent and a few random children are timed too, and `measured = fixed + scale * sum` is fitted.
Every entry is kept as it is measured, under a key of shape, scenario and hardware, so a resumed or
later run sees the same figures.
"""

import json
import platform
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fretsaw.artifact import canonical_json, write_json
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.timing import Load, time_decode, time_prefill
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import BYTES_PER_ELEMENT, block_kv_bytes, block_params, embedding_params
from fretsaw.puzzle.settings import CostSettings
from fretsaw.puzzle.table import layer_alternatives
from fretsaw.scenario import Scenario
from fretsaw.stage import StageRun

COSTS = "costs.json"
PHASES: dict[str, Callable[[Decoder, Load], float]] = {
    "prefill_ms": time_prefill,
    "decode_ms": time_decode,
}
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cost(settings: CostSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the time, memory and parameters of every alternative and of what is fixed."""
    config = checkpoint.read_config(inputs["parent"])
    scenario = Scenario.parse(settings.scenario)
    load = Load(scenario.batch, scenario.prompt_tokens, scenario.output_tokens)
    dtype = TORCH_DTYPES[scenario.dtype]
    kept = Entries(run.resume_folder / COSTS)

    # --- what is timed: stacks of each distinct subblock, then whole models -----------------------
    names = sorted({n for b in config.blocks for pair in layer_alternatives(b) for n in pair})
    parts = [name for name in names if not name.endswith("_none")]
    probes = [list(config.blocks), *_random_children(config, settings.probes, run.seed)]
    stacks: dict[str, list[BlockConfig]] = {}
    for name in parts:
        block = _alone(name)
        stacks[f"{name} x{settings.layers}"] = [block] * settings.layers
        stacks[f"{name} x{2 * settings.layers}"] = [block] * 2 * settings.layers
    stacks |= {f"whole {i}": blocks for i, blocks in enumerate(probes)}

    # --- interleaved measurement ------------------------------------------------------------------
    run.progress.start("timing", settings.rounds * len(stacks), unit="model")
    hardware = {
        "host": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    keys = {
        name: canonical_json(
            [
                str(scenario),
                hardware,
                _shape(config),
                [(b.attention_name, b.ffn_name) for b in blocks],
            ]
        )
        for name, blocks in stacks.items()
    }
    num_done = 0
    for round_index in range(settings.rounds):
        for name, blocks in stacks.items():
            num_done += 1
            entry = f"{keys[name]}#{round_index}"
            if entry not in kept:
                decoder = _random_decoder(config, blocks, dtype, run.device)
                if round_index == 0:  # the first call pays for allocation and dispatch
                    for time_phase in PHASES.values():
                        time_phase(decoder, load)
                kept.add(entry, {phase: f(decoder, load) for phase, f in PHASES.items()})
            run.step(num_done, row=False)
    times = {
        name: {
            phase: statistics.median(kept[f"{key}#{r}"][phase] for r in range(settings.rounds))
            for phase in PHASES
        }
        for name, key in keys.items()
    }

    # --- from stacks to subblocks, and the calibration of sums ------------------------------------
    marginal = {
        name: {
            phase: max(
                0.0,
                times[f"{name} x{2 * settings.layers}"][phase]
                - times[f"{name} x{settings.layers}"][phase],
            )
            / settings.layers
            for phase in PHASES
        }
        for name in parts
    }
    fixed, scale, errors = {}, {}, {}
    for phase in PHASES:
        sums = np.array([_sum(marginal, blocks, phase) for blocks in probes])
        measured = np.array([times[f"whole {i}"][phase] for i in range(len(probes))])
        fixed[phase], scale[phase] = fit_line(sums, measured)
        predicted = fixed[phase] + scale[phase] * sums
        errors[phase] = float(np.abs(predicted / measured - 1).max())
    alternatives = {
        name: {
            **{phase: scale[phase] * marginal.get(name, {}).get(phase, 0.0) for phase in PHASES},
            **_closed_form(config, name, scenario),
        }
        for name in names
    }
    memory = embedding_params(config)
    fixed["memory_mib"] = memory * BYTES_PER_ELEMENT[scenario.dtype] / 2**20
    fixed["params"] = memory
    write_json(
        run.folder / COSTS,
        {
            "scenario": str(scenario),
            "hardware": hardware,
            "units": {"prefill_ms": "ms", "decode_ms": "ms", "memory_mib": "MiB", "params": "1"},
            "fixed": fixed,
            "alternatives": alternatives,
            "parent": times["whole 0"],
            "calibration": {"scale": scale, "largest_error": errors},
        },
    )
    write_json(run.folder / "measurements.json", kept.values)
    return {
        "alternatives": len(names),
        **{f"scale_{phase}": value for phase, value in scale.items()},
        **{f"largest_error_{phase}": value for phase, value in errors.items()},
    }


class Entries:
    """Measurements on disk, one line each, written as they are made."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, dict[str, float]] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                with_key = _parse_line(line)
                if with_key:
                    self.values[with_key[0]] = with_key[1]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> dict[str, float]:
        return self.values[key]

    def add(self, key: str, value: dict[str, float]) -> None:
        """Keep one measurement."""
        self.values[key] = value
        with self.path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")


def _parse_line(line: str) -> tuple[str, dict[str, float]] | None:
    try:
        key, value = json.loads(line)
    except ValueError:  # the line that was being written when the process was killed
        return None
    return key, value


def fit_line(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return (fixed, scale) of measured = fixed + scale * sum, least squares relative to measured.

    The scale is held in [0.5, 2] and the fixed part is not negative: beyond that the parts were
    measured wrongly, and the fit must not hide it. With one model, or equal sums, the scale is 1.
    """
    if len(sums) < 2 or np.ptp(sums) < 1e-9:
        return max(0.0, float(measured[0] - sums[0])), 1.0
    weights = 1 / measured
    design = np.stack([np.ones_like(sums), sums], axis=1) * weights[:, None]
    (fixed, scale), *_ = np.linalg.lstsq(design, measured * weights, rcond=None)
    scale = float(np.clip(scale, 0.5, 2.0))
    if fixed < 0:
        scale = float(np.clip((sums / measured).sum() / ((sums / measured) ** 2).sum(), 0.5, 2.0))
        return 0.0, scale
    return float(np.average(measured - scale * sums, weights=weights)), scale


def _alone(name: str) -> BlockConfig:
    is_ffn = name.startswith("ffn")
    return BlockConfig.from_names("attn_none" if is_ffn else name, name if is_ffn else "ffn_none")


def _shape(config: ModelConfig) -> list[int]:
    return [config.hidden_size, config.num_attention_heads, config.head_dim, config.vocab_size]


def _random_children(config: ModelConfig, count: int, seed: int) -> list[list[BlockConfig]]:
    chooser = random.Random(seed)
    return [
        [
            BlockConfig.from_names(*(chooser.choice(names) for names in layer_alternatives(block)))
            for block in config.blocks
        ]
        for _ in range(count)
    ]


def _random_decoder(
    config: ModelConfig, blocks: list[BlockConfig], dtype: torch.dtype, device: str
) -> Decoder:
    """Return a decoder of these shapes; times do not depend on the weights."""
    with torch.device(device):
        decoder = Decoder(replace(config, blocks=tuple(blocks)))
    return decoder.to(dtype).eval().requires_grad_(False)


def _sum(
    marginal: Mapping[str, Mapping[str, float]], blocks: list[BlockConfig], phase: str
) -> float:
    names = [name for block in blocks for name in (block.attention_name, block.ffn_name)]
    return sum(marginal[name][phase] for name in names if name in marginal)


def _closed_form(config: ModelConfig, name: str, scenario: Scenario) -> dict[str, float]:
    block = _alone(name) if not name.endswith("_none") else None
    if block is None:
        return {"memory_mib": 0.0, "params": 0}
    params = block_params(config, block).total
    cached = scenario.batch * (scenario.prompt_tokens + scenario.output_tokens)
    num_bytes = params * BYTES_PER_ELEMENT[scenario.dtype]
    num_bytes += block_kv_bytes(config, block, scenario.dtype) * cached
    return {"memory_mib": num_bytes / 2**20, "params": params}
