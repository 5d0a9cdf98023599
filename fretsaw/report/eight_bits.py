"""The parent with its layers' matrices in 8 bits and nothing removed: what fewer bits give."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fretsaw.checkpoint.folder import read_config
from fretsaw.model.config import ModelConfig
from fretsaw.model.kinds import Precision
from fretsaw.report.stage_files import read_json
from fretsaw.scenario.memory import network_memory
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage import artifact


@dataclass(frozen=True)
class InEightBits:
    """One evaluation of the parent in 8 bits."""

    precision: str
    memory_mib: float  # at the scenario that was benched
    figures: dict[str, Any]  # its `results.json`


def read_in_8_bits(inputs: Mapping[str, Path]) -> list[InEightBits]:
    """Return what every evaluation of the parent in 8 bits found.

    Raises `ValueError` for an evaluation of anything else.
    """
    config = read_config(inputs["parent"])
    scenario = Scenario.parse(read_json(inputs["bench"] / "speed.json")["scenario"])
    found = []
    for folder in (path for key, path in inputs.items() if key.startswith("quantised")):
        precision, results = _read_evaluation(folder, inputs["parent"])
        memory_mib = network_memory(_stored(config, precision), scenario)
        found.append(InEightBits(precision, memory_mib, results))
    return found


def _read_evaluation(folder: Path, parent: Path) -> tuple[Precision, dict[str, Any]]:
    manifest, results = artifact.read_manifest(folder), read_json(folder / "results.json")
    precision = manifest["settings"].get("weights")
    is_parents = manifest["inputs"]["model"]["hash"] == artifact.hash_path(parent)
    if precision not in ("fp8", "int8") or not is_parents or "kl" not in results:
        raise ValueError(
            f"{folder}: no evaluation of the parent in 8 bits on text; make it with `fretsaw "
            "eval --model PARENT --parent PARENT --corpus CORPUS --weights fp8`"
        )
    return precision, results


def _stored(config: ModelConfig, precision: Precision) -> ModelConfig:
    blocks = tuple(block.stored(precision, precision) for block in config.blocks)
    return replace(config, blocks=blocks)
