"""Finished children whose speed `fretsaw bench` measured: what the costs are fitted again with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fretsaw.model.config import BlockConfig, blocks_from_names
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.artifact import read_output
from fretsaw.stage.own_file import NUMBER


@dataclass(frozen=True)
class FinishedChild:
    """A child, and its time over its parent's by phase: a median of interleaved ratios."""

    name: str
    blocks: Sequence[BlockConfig]
    ratios: Mapping[str, float]
    scenario: Scenario

    @classmethod
    def read(cls, folder: Path, name: str) -> "FinishedChild":
        """Read a bench folder. Raises ValueError where it does not say what the child is."""
        path = folder / "speed.json"
        if not path.is_file():
            raise ValueError(f"--refit {folder}: no speed.json; give what `fretsaw bench` wrote")
        phase = {"speedup": NUMBER}
        speed = read_output(folder, path.name, {"prefill": phase, "decode": phase, "scenario": str})
        if "choices" not in speed:
            raise ValueError(f"--refit {folder}: does not name the child's layers; bench it again")
        ratios = {f"{phase}_ms": 1 / speed[phase]["speedup"] for phase in ("prefill", "decode")}
        blocks = blocks_from_names((attention, ffn) for attention, ffn in speed["choices"])
        return cls(name, blocks, ratios, Scenario.parse(speed["scenario"]))


def check_benched(
    benched: Sequence[FinishedChild],
    scenarios: Sequence[Scenario],
    names: Sequence[str],
    layers: int,
) -> None:
    """Raise where a child was benched at none of the scenarios, or is no child of the parent's."""
    for child in benched:
        if child.scenario not in scenarios:
            raise ValueError(
                f"--refit: {child.name} was measured at {child.scenario}, but the costs are of "
                f"{' and '.join(map(str, scenarios))}; bench it there"
            )
        own = {name for block in child.blocks for name in (block.attention_name, block.ffn_name)}
        strange = sorted(own - set(names))
        if len(child.blocks) != layers or strange:
            has = f"{len(child.blocks)} layers" + (f" and a {strange[0]}" if strange else "")
            raise ValueError(
                f"--refit: {child.name} has {has}, but the parent {layers} layers and the space "
                f"{', '.join(names)}; give a child of it"
            )
