"""Costs against what is served: random children foretold, then the costs fitted again with others.

    python benchmarks/cost_error.py                                  (about 25 minutes on 2 cores)
    python benchmarks/cost_error.py --shapes tiny --children 3 --rounds 3 --batch 16

Costs are measured as `fretsaw cost` measures them. Then children of random layers, none of which
it has timed, are served in turn with their parent as `fretsaw bench` serves them; a child's speed
is the median of interleaved ratios, the noise floor how far two runs of the parent differ. Printed
is |foretold / measured - 1|: as the costs stand, and fitted again with all benched children but the
one that is foretold.
"""

import argparse
import json
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fretsaw.bench.measure import serve
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.timing import describe_hardware, torch_dtype
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.puzzle.costs import additive
from fretsaw.puzzle.costs.cost import cost
from fretsaw.puzzle.settings import CostSettings, SpaceSettings
from fretsaw.puzzle.space import layer_alternatives
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress
from fretsaw.stage.whole import write_json

PHASES = ("prefill", "decode")
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        **{"num_hidden_layers": 8, "hidden_size": 128, "num_attention_heads": 8, "head_dim": 16},
        **{"num_key_value_heads": 4, "intermediate_size": 384, "vocab_size": 512},
    },
    "12 layers": {
        **{"num_hidden_layers": 12, "hidden_size": 256, "num_attention_heads": 8, "head_dim": 32},
        **{"num_key_value_heads": 4, "intermediate_size": 768, "vocab_size": 1024},
    },
}


def random_child(config: ModelConfig, chooser: random.Random) -> list[BlockConfig]:
    return [
        BlockConfig.from_names(
            *(chooser.choice(names) for names in layer_alternatives(block, SpaceSettings()))
        )
        for block in config.blocks
    ]


def decoder_of(config: ModelConfig, blocks: list[BlockConfig], scenario: Scenario) -> Decoder:
    decoder = Decoder(replace(config, blocks=tuple(blocks))).to(torch_dtype(scenario.dtype))
    return decoder.eval().requires_grad_(False)


def costs_of(parent: Path, out: Path, settings: CostSettings, **inputs: Path) -> dict[str, Any]:
    out.mkdir()
    run = StageRun(out, 0, "cpu", "fp32", Progress("cost", out))
    cost(settings, {"parent": parent, **inputs}, run)
    run.progress.close()
    return json.loads((out / "costs.json").read_text())


def foretold(costs: dict[str, Any], phase: str, config: ModelConfig, blocks: list) -> float:
    """Return the child's time over its parent's."""
    parts = {name: figures[f"{phase}_ms"] for name, figures in costs["alternatives"].items()}
    parts[additive.FIXED] = costs["fixed"][f"{phase}_ms"]
    return additive.predict(parts, blocks) / additive.predict(parts, config.blocks)


def bench(
    config: ModelConfig, children: dict[str, list[BlockConfig]], scenario: Scenario, rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return each child's time over its parent's by phase, and the noise floor."""
    decoders = {name: decoder_of(config, blocks, scenario) for name, blocks in children.items()}
    decoders["parent"] = decoder_of(config, list(config.blocks), scenario)
    for decoder in decoders.values():
        serve(decoder, scenario)
    served = []
    for i in range(rounds):
        served.append({name: serve(decoder, scenario) for name, decoder in decoders.items()})
        served[-1]["parent again"] = serve(decoders["parent"], scenario)
        print(f"served {i + 1}/{rounds}", flush=True)
    ratios = {
        name: {
            p: statistics.median(r[name][f"{p}_ms"] / r["parent"][f"{p}_ms"] for r in served)
            for p in PHASES
        }
        for name in (*children, "parent again")
    }
    floor = {
        p: statistics.median(
            abs(r["parent again"][f"{p}_ms"] / r["parent"][f"{p}_ms"] - 1) for r in served
        )
        for p in PHASES
    }
    return {name: ratios[name] for name in children}, floor


def compare(title: str, shape: dict[str, int], options: argparse.Namespace, work: Path) -> list:
    config = ModelConfig.uniform(**shape, max_position_embeddings=1024)  # type: ignore[arg-type]
    text = f"batch={options.batch},in=64,out=64,dtype=fp32,device=cpu"
    scenario, parent = Scenario.parse(text), work / "parent"
    parent.mkdir(parents=True)
    checkpoint.write(Decoder(config), parent)
    settings = CostSettings(scenario=text, rounds=options.rounds)
    plain = costs_of(parent, work / "costs", settings)

    chooser = random.Random(1)
    children = {f"child {i}": random_child(config, chooser) for i in range(options.children)}
    ratios, floor = bench(config, children, scenario, options.rounds)
    for name, blocks in children.items():
        (work / name).mkdir()
        speed: dict[str, Any] = {"scenario": text}
        speed["choices"] = [[b.attention_name, b.ffn_name] for b in blocks]
        speed |= {phase: {"speedup": 1 / ratios[name][phase]} for phase in PHASES}
        write_json(work / name / "speed.json", speed)
    refitted = {
        name: costs_of(
            parent,
            work / f"without {name}",
            settings,
            measured=work / "costs",
            **{f"refit{i}": work / other for i, other in enumerate(children) if other != name},
        )
        for name in children
    }

    results = []
    for phase in PHASES:
        errors = {
            when: [
                abs(foretold(table, phase, config, blocks) / ratios[name][phase] - 1)
                for name, blocks in children.items()
                for table in [plain if when == "as measured" else refitted[name]]
            ]
            for when in ("as measured", "refitted")
        }
        bound = max(0.05, 2 * floor[phase])
        medians = {when: statistics.median(found) for when, found in errors.items()}
        results.append(
            {
                **{"shape": title, "phase": phase, "noise_floor": floor[phase], "errors": errors},
                "noise_of_costs": plain["noise_floor"][f"{phase}_ms"],
            }
        )
        print(
            f"{title}, {phase}: median error {medians['as measured']:.1%} (bar 10 %: "
            f"{'met' if medians['as measured'] <= 0.1 else 'MISSED'}), refitted "
            f"{medians['refitted']:.1%} (bar {bound:.1%}: "
            f"{'met' if medians['refitted'] <= bound else 'MISSED'}), largest "
            f"{max(errors['as measured']):.1%} and {max(errors['refitted']):.1%}; noise floor "
            f"{floor[phase]:.1%}, of the costs {results[-1]['noise_of_costs']:.1%}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Costs against served children.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--children", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as work:
        for title in options.shapes:
            results += compare(title, SHAPES[title], options, Path(work) / title)
    print(json.dumps({"hardware": describe_hardware("cpu"), "results": results}))


if __name__ == "__main__":
    main()
