"""Timings on disk, kept as they are made, so that what was measured once is not measured again."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.artifact import read_output
from fretsaw.stage.hashes import canonical_json
from fretsaw.stage.own_file import append_row, read_jsonl

Times = Mapping[str, float]  # milliseconds by phase


class Measurements:
    """Milliseconds by phase under a key, a line each; what cannot be read is measured again."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, Times] = {}
        for row in read_jsonl(path, list):
            if len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], dict):
                self.values[row[0]] = row[1]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Times:
        return self.values[key]

    def add(self, key: str, times: Times) -> None:
        """Keep one measurement."""
        self.values[key] = times
        append_row(self.path, [key, times])

    def take_over(self, path: Path) -> None:
        """Take what another cost folder measured, where it is not here yet."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a folder that `fretsaw cost` measured")
        for key, times in read_output(path.parent, path.name).items():
            if key not in self:
                self.add(key, times)

    def medians(self, config: ModelConfig) -> Iterator[tuple[str, list[str], Times]]:
        """Yield scenario, subblocks' names and median times of the models of a network's shape."""
        rounds: dict[str, list[Times]] = defaultdict(list)
        for key, times in self.values.items():
            scenario, _, shape, names, _ = json.loads(key)
            if shape == _shape(config):
                rounds[json.dumps([scenario, names])].append(times)
        for model, all_times in rounds.items():
            scenario, names = json.loads(model)
            times = {p: statistics.median(t[p] for t in all_times) for p in all_times[0]}
            yield scenario, [name for pair in names for name in pair], times


def key_of(
    scenario: Scenario,
    hardware: Mapping[str, Any],
    config: ModelConfig,
    blocks: Sequence[BlockConfig],
    round_index: int,
) -> str:
    """Return what identifies a timing: where and at what, of which shapes, in which round."""
    names = [(block.attention_name, block.ffn_name) for block in blocks]
    return canonical_json([str(scenario), hardware, _shape(config), names, round_index])


def _shape(config: ModelConfig) -> list[int]:
    return [config.hidden_size, config.num_attention_heads, config.head_dim, config.vocab_size]
