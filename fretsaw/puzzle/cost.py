"""The cost stage: measured prefill and decode time of every alternative, memory in closed form.

Timed are stacks of n and of 2n equal blocks, each alternative beside the parent's other half, the
parent itself and a few random children, all interleaved. One additive model is fitted to all of
them; how well it foretells a child it has not seen is written beside the costs. Every measurement
is kept as it is made, under a key of shape, scenario and hardware, so a resumed run sees the same.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fretsaw.artifact import canonical_json, write_json
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.timing import (
    Load,
    describe_hardware,
    time_decode,
    time_prefill,
    torch_dtype,
)
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import BYTES_PER_ELEMENT, block_kv_bytes, block_params, embedding_params
from fretsaw.puzzle.settings import CostSettings, SpaceSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.scenario import Scenario
from fretsaw.stage import StageRun

COSTS = "costs.json"
FIXED = "fixed"  # what every model pays: embeddings, head, sampling, dispatch
PHASES: dict[str, Callable[[Decoder, Load], float]] = {
    "prefill_ms": time_prefill,
    "decode_ms": time_decode,
}


def cost(settings: CostSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the time, memory and parameters of every alternative and of what is fixed."""
    config = checkpoint.read_config(inputs["parent"])
    scenario = Scenario.parse(settings.scenario)
    load = Load(scenario.batch, scenario.prompt_tokens, scenario.output_tokens)
    dtype = torch_dtype(scenario.dtype)
    kept = Entries(run.resume_folder / COSTS)

    # --- what is timed: stacks of equal blocks, the parent, a few random children -----------------
    names = sorted(
        {n for b in config.blocks for pair in layer_alternatives(b, settings.space) for n in pair}
    )
    models = {
        f"{block.attention_name} {block.ffn_name} x{depth}": [block] * depth
        for block in _blocks_beside_the_parents(config, names)
        for depth in (settings.layers, 2 * settings.layers)
    }
    models["parent"] = list(config.blocks)
    models |= _random_children(config, settings.space, settings.probes, run.seed)

    # --- interleaved measurement ------------------------------------------------------------------
    run.progress.start("timing", settings.rounds * len(models), unit="model")
    hardware = describe_hardware(run.device)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    num_done = 0
    for round_index in range(settings.rounds):
        for name, blocks in models.items():
            num_done += 1
            shapes = [(block.attention_name, block.ffn_name) for block in blocks]
            key = canonical_json([str(scenario), hardware, _shape(config), shapes, round_index])
            if key not in kept:
                decoder = _random_decoder(config, blocks, dtype, run.device)
                kept.add(key, {phase: f(decoder, load) for phase, f in PHASES.items()})
            measured[name].append(kept[key])
            run.step(num_done, row=False)

    # --- one additive model of all of them --------------------------------------------------------
    times = {phase: drift_free_medians(measured, phase) for phase in PHASES}
    fits = {phase: fit_additive(models, times[phase]) for phase in PHASES}
    left_out = {phase: left_out_errors(models, times[phase]) for phase in PHASES}
    fixed: dict[str, float] = {phase: fits[phase][FIXED] for phase in PHASES}
    alternatives = {
        name: {
            **{phase: fits[phase].get(name, 0.0) for phase in PHASES},
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
            "parent": {phase: times[phase]["parent"] for phase in PHASES},
            "left_out_error": left_out,
        },
    )
    write_json(run.folder / "measurements.json", kept.values)
    return {
        "alternatives": len(names),
        **{
            f"left_out_error_{phase}": max(left_out[phase].values(), default=0.0)
            for phase in PHASES
        },
    }


def _blocks_beside_the_parents(config: ModelConfig, names: list[str]) -> list[BlockConfig]:
    """Return every alternative in a block whose other half is the parent's own."""
    whole = [b for b in config.blocks if b.attention != "none" and b.ffn != "none"]
    own = Counter(whole or config.blocks).most_common(1)[0][0]
    blocks = [
        BlockConfig.from_names(own.attention_name, name)
        if name.startswith("ffn")
        else BlockConfig.from_names(name, own.ffn_name)
        for name in names
    ]
    return list(dict.fromkeys(blocks))


def drift_free_medians(
    measured: Mapping[str, list[dict[str, float]]], phase: str
) -> dict[str, float]:
    """Return each model's median over rounds, each round taken relative to its own mean.

    A machine that slows down for a while slows a whole round; what is left is how models compare.
    """
    table = np.array([[entry[phase] for entry in entries] for entries in measured.values()])
    level = table.mean(axis=0)
    medians = np.median(table / level, axis=1) * np.median(level)
    return dict(zip(measured, medians.tolist(), strict=True))


def fit_additive(
    models: Mapping[str, list[BlockConfig]], times: Mapping[str, float]
) -> dict[str, float]:
    """Return cost by name (and what is fixed) of time = fixed + sum of the parts of all layers.

    Non-negative least squares of the relative error, over stacks of n and 2n layers and whole
    models alike: so a part's cost is what one more of it adds among neighbours as they are served.
    """
    from scipy.optimize import nnls

    parts = sorted(
        {name for blocks in models.values() for block in blocks for name in _names_of(block)}
    )
    counts = {
        model: Counter(name for block in blocks for name in _names_of(block))
        for model, blocks in models.items()
    }
    design = np.array([[1.0, *(counts[model][part] for part in parts)] for model in models])
    measured = np.array([times[model] for model in models])
    solution, _ = nnls(design / measured[:, None], np.ones(len(measured)))
    return dict(zip([FIXED, *parts], solution.tolist(), strict=True))


def left_out_errors(
    models: Mapping[str, list[BlockConfig]], times: Mapping[str, float]
) -> dict[str, float]:
    """Return the relative error of each random child's time when the fit has not seen it."""
    errors = {}
    for child in (name for name in models if name.startswith("child")):
        fit = fit_additive({m: blocks for m, blocks in models.items() if m != child}, times)
        names = [name for block in models[child] for name in _names_of(block)]
        predicted = fit[FIXED] + sum(fit.get(name, 0.0) for name in names)
        errors[child] = abs(predicted / times[child] - 1)
    return errors


def _names_of(block: BlockConfig) -> list[str]:
    """Return the parts of a block that take time."""
    return [n for n in (block.attention_name, block.ffn_name) if not n.endswith("_none")]


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


def _alone(name: str) -> BlockConfig:
    is_ffn = name.startswith("ffn")
    return BlockConfig.from_names("attn_none" if is_ffn else name, name if is_ffn else "ffn_none")


def _shape(config: ModelConfig) -> list[int]:
    return [config.hidden_size, config.num_attention_heads, config.head_dim, config.vocab_size]


def _random_children(
    config: ModelConfig, space: SpaceSettings, count: int, seed: int
) -> dict[str, list[BlockConfig]]:
    chooser = random.Random(seed)
    return {
        f"child {i}": [
            BlockConfig.from_names(
                *(chooser.choice(names) for names in layer_alternatives(block, space))
            )
            for block in config.blocks
        ]
        for i in range(count)
    }


def _random_decoder(
    config: ModelConfig, blocks: list[BlockConfig], dtype: torch.dtype, device: str
) -> Decoder:
    """Return a decoder of these shapes; times do not depend on the weights."""
    with torch.device(device):
        decoder = Decoder(replace(config, blocks=tuple(blocks)))
    return decoder.to(dtype).eval().requires_grad_(False)


def _closed_form(config: ModelConfig, name: str, scenario: Scenario) -> dict[str, float]:
    block = _alone(name) if not name.endswith("_none") else None
    if block is None:
        return {"memory_mib": 0.0, "params": 0}
    params = block_params(config, block).total
    cached = scenario.batch * (scenario.prompt_tokens + scenario.output_tokens)
    num_bytes = params * BYTES_PER_ELEMENT[scenario.dtype]
    num_bytes += block_kv_bytes(config, block, scenario.dtype) * cached
    return {"memory_mib": num_bytes / 2**20, "params": params}
