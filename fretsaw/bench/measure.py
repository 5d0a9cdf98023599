"""The bench stage: child against parent, in turn, by what the engine serves."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fretsaw.bench.settings import BenchSettings
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import PAGE_SIZE, Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request, whole
from fretsaw.engine.timing import torch_dtype
from fretsaw.model.decoder import Decoder
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.artifact import read_output
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json

SPEED = "speed.json"


def bench(settings: BenchSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write medians of interleaved ratios, and the forecast beside them where there is one."""
    scenario = Scenario.parse(settings.scenario)
    dtype = torch_dtype(scenario.dtype)
    models = {
        name: checkpoint.load_served(inputs[name], device=run.device, dtype=dtype)
        for name in ("parent", "child")
    }
    rounds: list[dict[str, dict[str, float]]] = []
    run.progress.start("serving", settings.rounds, unit="round")
    for model in models.values():
        serve(model, scenario)
    for i in range(settings.rounds):
        rounds.append({name: serve(model, scenario) for name, model in models.items()})
        # The parent once more: how far two runs of the same model differ is the noise floor.
        rounds[-1]["parent again"] = serve(models["parent"], scenario)
        run.step(i + 1, row=False)
    choices = [[b.attention_name, b.ffn_name] for b in models["child"].config.blocks]
    result: dict[str, Any] = {"scenario": str(scenario), "choices": choices, "rounds": rounds}
    for phase in ("prefill", "decode"):
        ms = f"{phase}_ms"
        ratios = [r["parent"][ms] / r["child"][ms] for r in rounds]
        floor = [abs(r["parent"][ms] / r["parent again"][ms] - 1) for r in rounds]
        result[phase] = {
            "speedup": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "noise_floor": statistics.median(floor),
            "parent_ms": statistics.median(r["parent"][ms] for r in rounds),
            "child_ms": statistics.median(r["child"][ms] for r in rounds),
        }
    if "search" in inputs:
        forecast = read_output(inputs["search"], "forecast.json")
        result["target"] = forecast["target"]
        for phase, predicted in _predicted(inputs["search"], forecast, models["child"]).items():
            result[phase]["predicted"] = predicted
            result[phase]["prediction_error"] = predicted / result[phase]["speedup"] - 1
    write_json(run.folder / SPEED, result)
    for phase in ("decode", "prefill"):
        figures = result[phase]
        predicted = f", predicted {figures['predicted']:.2f}x" if "predicted" in figures else ""
        say(
            f"bench: {phase} {figures['speedup']:.2f}x the parent{predicted} "
            f"(noise {figures['noise_floor']:.1%}) at {scenario}"
        )
    return {f"{phase}_speedup": result[phase]["speedup"] for phase in ("decode", "prefill")}


def _predicted(search: Path, forecast: Mapping[str, Any], child: Decoder) -> dict[str, float]:
    """Return the speed-ups foreseen for the solution that this child is, if it is one."""
    choices = [[block.attention_name, block.ffn_name] for block in child.config.blocks]
    for solution in read_output(search, "solutions.json", [{"choices": list}]):
        if solution["choices"] == choices:
            parent, costs = forecast["parent"], solution["costs"]
            return {p: parent[f"{p}_ms"] / costs[f"{p}_ms"] for p in ("prefill", "decode")}
    return {}


def serve(model: Decoder, scenario: Scenario) -> dict[str, float]:
    """Generate a whole batch of the scenario; return the milliseconds of each phase.

    The prompts are read once before: a server that runs has its memory already.
    """
    vocab = model.config.vocab_size
    requests = [
        Request(
            tuple((7 * row + 13 * at) % vocab for at in range(scenario.prompt_tokens)),
            Sampling(max_tokens=scenario.output_tokens),
        )
        for row in range(scenario.batch)
    ]
    engine = Engine(
        model,
        max_batch=scenario.batch,
        chunk_tokens=scenario.batch * scenario.prompt_tokens,  # so that the phases stay apart
        reuses_prefixes=False,
    )
    row = scenario.prompt_tokens + scenario.output_tokens
    engine.touch(scenario.batch * -(-row // PAGE_SIZE))
    warming = [Request(request.token_ids, Sampling(max_tokens=1)) for request in requests]
    for _ in whole(engine.generate(warming)):
        pass
    warm = engine.stats()
    for _ in whole(engine.generate(requests)):
        pass
    stats = engine.stats()
    prefill_ms = (stats.prefill_s - warm.prefill_s) * 1000
    decode_ms = (stats.decode_s - warm.decode_s) * 1000
    # The first output token comes from the prefill, so decoding makes one less.
    share = scenario.output_tokens / max(1, scenario.output_tokens - 1)
    return {"prefill_ms": prefill_ms, "decode_ms": decode_ms * share}
