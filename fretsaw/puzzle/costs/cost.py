"""The cost stage: what every alternative takes in time and memory, at one or several scenarios.

Times are measured in the engine that serves (ours, or a vLLM server) on a few models of random
weights, and taken apart by one additive model; or they are a roofline's, which needs no device.
How well the sums foretell children they have not seen is written beside them. What `fretsaw bench`
measured of a finished child can be given back, and the costs are fitted again with it.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import BYTES_PER_ELEMENT
from fretsaw.puzzle.costs import additive, probes
from fretsaw.puzzle.costs.finished_children import FinishedChild, check_benched
from fretsaw.puzzle.costs.measurements import Measurements, Times, key_of
from fretsaw.puzzle.costs.roofline_fit import fit_roofline, points_of
from fretsaw.puzzle.costs.server_times import ServerTimes
from fretsaw.puzzle.settings import CostSettings
from fretsaw.scenario.hardware import find_device
from fretsaw.scenario.memory import fixed_memory, memory_costs
from fretsaw.scenario.roofline import PHASES, roofline_costs
from fretsaw.scenario.scenario import Scenario, parse_scenarios
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.stage.whole import write_json

if TYPE_CHECKING:
    from fretsaw.puzzle.costs.engine_times import EngineTimes

COSTS, MEASUREMENTS = "costs.json", "measurements.json"
UNITS = {"prefill_ms": "ms", "decode_ms": "ms", "memory_mib": "MiB", "params": "1"}
Rounds = Mapping[str, Sequence[Times]]  # every round's times, by model


def cost(settings: CostSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the time, memory and parameters of every alternative and of what is fixed."""
    config = checkpoint.read_config(inputs["parent"])
    scenarios = parse_scenarios(settings.scenario)
    check_scenarios(scenarios, config, settings)
    if is_shared(run) and settings.engine != "embedded":
        raise ValueError(
            f"cost: with engine {settings.engine!r} there is no timing that workers could share; "
            "leave out --workers and --ray"
        )
    kept = Measurements(run.resume_folder / COSTS)
    if "measured" in inputs:
        kept.take_over(inputs["measured"] / MEASUREMENTS)
    names = probes.alternative_names(config, settings.space)
    benched = [
        FinishedChild.read(path, key) for key, path in inputs.items() if key.startswith("refit")
    ]
    check_benched(benched, scenarios, names, config.num_hidden_layers)
    if settings.engine == "roofline":
        if benched:
            raise ValueError("--refit: a roofline has no times to fit again; leave --refit out")
        hardware: Any = {"device": scenarios[0].device}
        sets = by_roofline(config, names, scenarios, kept)
    else:
        parent = inputs["parent"]
        hardware, sets = by_timing(settings, config, names, scenarios, parent, benched, kept, run)

    # Whoever needs one scenario reads the first at the top; `scenarios` holds them all.
    shared = {"engine": settings.engine, "hardware": hardware, "units": UNITS}
    write_json(run.folder / COSTS, {**shared, **sets[0], "scenarios": sets})
    write_json(run.folder / MEASUREMENTS, kept.values)
    for costs in sets:
        say_errors(costs)
    errors = {phase: sets[0]["left_out_error"][phase].values() for phase in PHASES}
    return {
        "alternatives": len(names),
        **{f"left_out_error_{phase}": max(errors[phase], default=0.0) for phase in PHASES},
    }


def check_scenarios(
    scenarios: Sequence[Scenario], config: ModelConfig, settings: CostSettings
) -> None:
    """Raise `ValueError` for scenarios that the model or the space does not go with."""
    for scenario in scenarios:
        scenario.check_context(config.max_position_embeddings)
        if settings.space.precisions and BYTES_PER_ELEMENT[scenario.dtype] == 1:
            raise ValueError(
                f"scenario: dtype={scenario.dtype} has every matrix in 8 bits, so the space has no "
                f"choice of {' or '.join(settings.space.precisions)}; leave one of them out"
            )


def is_shared(run: StageRun) -> bool:
    """Whether several workers are asked for."""
    return bool(run.workers.ray) or run.workers.workers > 1


# --- measured -------------------------------------------------------------------------------------


def by_timing(
    settings: CostSettings,
    config: ModelConfig,
    names: Sequence[str],
    scenarios: Sequence[Scenario],
    parent: Path,
    benched: Sequence[FinishedChild],
    kept: Measurements,
    run: StageRun,
) -> tuple[Any, list[dict[str, Any]]]:
    """Return what the times were measured on, and the costs at each scenario."""
    models: probes.Models = {
        **probes.stacks(config, names, settings.layers),
        **probes.whole_models(config, settings.space, settings.probes, run.seed),
    }
    engine, models = _engine(settings, config, models, scenarios[0], parent, run)
    if is_shared(run):
        from fretsaw.puzzle.costs.nodes import measure_on_nodes

        measure_on_nodes(config, models, scenarios, settings.rounds, kept, engine.hardware, run)
    rounds = measure(engine, config, models, scenarios, settings.rounds, kept, run)
    return engine.hardware, [
        _fitted(
            config,
            names,
            scenario,
            models,
            rounds[scenario],
            [child for child in benched if child.scenario == scenario],
            is_interleaved=engine.is_interleaved,
        )
        for scenario in scenarios
    ]


def _engine(
    settings: CostSettings,
    config: ModelConfig,
    models: probes.Models,
    scenario: Scenario,
    parent: Path,
    run: StageRun,
) -> tuple["EngineTimes | ServerTimes", probes.Models]:
    """Return what opens models for timing, and the models as that engine takes them."""
    if settings.engine == "embedded":
        from fretsaw.puzzle.costs.engine_times import EngineTimes

        return EngineTimes(config, scenario.dtype, run.device), probes.without_twins(models)
    models = probes.with_first_attention(models, probes.own_block(config))
    models = probes.without_twins(models)
    served = ServerTimes(
        config,
        models,
        folder=run.resume_folder / "models",
        parent=parent,
        scenario=scenario,
        command=settings.server_command,
        url=settings.server_url,
        deadline_s=settings.server_deadline_s,
        check=run.check,
    )
    return served, models


def measure(
    engine: "EngineTimes | ServerTimes",
    config: ModelConfig,
    models: probes.Models,
    scenarios: Sequence[Scenario],
    num_rounds: int,
    kept: Measurements,
    run: StageRun,
) -> Mapping[Scenario, Rounds]:
    """Time every model at every scenario in every round, but for what is kept already."""
    total = num_rounds * len(models) * len(scenarios)
    run.progress.start("timing", total, unit="measurement")
    measured: dict[Scenario, dict[str, list[Times]]] = {
        scenario: {name: [] for name in models} for scenario in scenarios
    }
    num_done = 0
    for name, rounds in _visits(models, num_rounds, engine.is_interleaved):
        keys = {
            (r, scenario): key_of(scenario, engine.hardware, config, models[name], r)
            for r in rounds
            for scenario in scenarios
        }
        missing = [where for where, key in keys.items() if key not in kept]
        num_done += len(keys) - len(missing)
        if missing:
            with engine.open(name, models[name]) as time:
                for r, scenario in missing:
                    kept.add(keys[r, scenario], time(scenario, r))
                    num_done += 1
                    run.step(num_done, row=False)
        for (_, scenario), key in keys.items():
            measured[scenario][name].append(kept[key])
    return measured


def times_of(rounds: Rounds, phase: str) -> dict[str, list[float]]:
    """Return every round's time of one phase, by model."""
    return {model: [times[phase] for times in several] for model, several in rounds.items()}


def _visits(
    models: probes.Models, num_rounds: int, is_interleaved: bool
) -> Iterator[tuple[str, range]]:
    """Yield which model is opened next, and the rounds it is timed for: one, or all at once."""
    if is_interleaved:
        for r in range(num_rounds):
            yield from ((name, range(r, r + 1)) for name in models)
    else:
        yield from ((name, range(num_rounds)) for name in models)


def _fitted(
    config: ModelConfig,
    names: Sequence[str],
    scenario: Scenario,
    models: probes.Models,
    rounds: Rounds,
    benched: Sequence[FinishedChild],
    *,
    is_interleaved: bool,
) -> dict[str, Any]:
    """Return the costs at a scenario: one additive model of all times, and how far it errs."""
    all_models = {**models, **{child.name: child.blocks for child in benched}}
    children = [m for m in models if m.startswith(probes.CHILD)] + [b.name for b in benched]
    whole = [probes.PARENT, *children]
    fits, parent, left_out, noise = {}, {}, {}, {}
    refit: dict[str, dict[str, Any]] = {child.name: {} for child in benched}
    for phase in PHASES:
        of_phase = times_of(rounds, phase)
        times, noise[phase] = additive.round_medians(of_phase, is_interleaved=is_interleaved)
        parent[phase] = times[probes.PARENT]
        before = additive.fit_additive(models, times, whole)
        times |= {child.name: parent[phase] * child.ratios[phase] for child in benched}
        fits[phase] = additive.fit_additive(all_models, times, whole)
        left_out[phase] = additive.left_out_errors(all_models, times, whole, children)
        for child in benched:
            refit[child.name][phase] = {
                "measured": times[child.name],
                "foreseen": additive.predict(before, child.blocks),
                "refitted": additive.predict(fits[phase], child.blocks),
            }
    costs: dict[str, Any] = {
        "scenario": str(scenario),
        "fixed": {phase: fits[phase][additive.FIXED] for phase in PHASES}
        | fixed_memory(config, scenario),
        "alternatives": {
            name: {phase: fits[phase].get(name, 0.0) for phase in PHASES}
            | memory_costs(config, name, scenario)
            for name in names
        },
        "parent": parent,
        "left_out_error": left_out,
        "noise_floor": {phase: statistics.median(noise[phase].values()) for phase in PHASES},
        "noise": noise,
    }
    return costs | ({"refit": refit} if benched else {})


# --- not measured ---------------------------------------------------------------------------------


def by_roofline(
    config: ModelConfig, names: Sequence[str], scenarios: Sequence[Scenario], kept: Measurements
) -> list[dict[str, Any]]:
    """Return the costs at each scenario by roofline; fitted where times are at hand."""
    device, constants = scenarios[0].device, None
    if kept.values:
        dtype = scenarios[0].dtype
        constants = fit_roofline(points_of(config, kept, device, dtype), find_device(device), dtype)
    sets = []
    for scenario in scenarios:
        fixed, alternatives = roofline_costs(config, names, scenario, constants)
        parts = [n for b in config.blocks for n in (b.attention_name, b.ffn_name)]
        sets.append(
            {
                "scenario": str(scenario),
                "fixed": fixed,
                "alternatives": alternatives,
                "parent": {p: fixed[p] + sum(alternatives[n][p] for n in parts) for p in PHASES},
                "left_out_error": {phase: {} for phase in PHASES},
            }
        )
    return sets


def say_errors(costs: Mapping[str, Any]) -> None:
    """Print how well children that the fit has not seen are foretold."""
    for phase in PHASES:
        errors = list(costs["left_out_error"][phase].values())
        if errors:
            say(
                f"cost: {phase.removesuffix('_ms')} of {len(errors)} children left out foretold "
                f"within {statistics.median(errors):.1%} at the median, {max(errors):.1%} at most "
                f"(noise {costs['noise_floor'][phase]:.1%}) at {costs['scenario']}"
            )
