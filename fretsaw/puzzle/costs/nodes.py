"""Rounds of timing shared out over the nodes of a cluster, a whole machine to a round."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fretsaw.distributed.fanout import fan_out
from fretsaw.distributed.task import Tell
from fretsaw.model.config import ModelConfig
from fretsaw.puzzle.costs.engine_times import EngineTimes
from fretsaw.puzzle.costs.measurements import Measurements, Times, key_of
from fretsaw.puzzle.costs.probes import Models
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.execute import StageRun

TimingTask = tuple[
    int, Mapping[str, Sequence[Scenario]]
]  # a round; model -> where it is to be timed
Timed = tuple[Mapping[str, Any], list[tuple[str, Times]]]  # on what; times by key


def measure_on_nodes(
    config: ModelConfig,
    models: Models,
    scenarios: Sequence[Scenario],
    num_rounds: int,
    kept: Measurements,
    hardware: Mapping[str, Any],
    run: StageRun,
) -> None:
    """Have the run's workers time what is not kept yet.

    Raises `ValueError` where a node is not the hardware asked for.
    """
    tasks: list[TimingTask] = []
    for r in range(num_rounds):
        keys = {
            name: [s for s in scenarios if key_of(s, hardware, config, blocks, r) not in kept]
            for name, blocks in models.items()
        }
        if any(keys.values()):
            tasks.append((r, {name: where for name, where in keys.items() if where}))
    prepare = partial(timer, config, models, scenarios[0].dtype, run.device)
    run.progress.start("timing", len(tasks), unit="round")
    num_done = 0
    with fan_out(
        prepare, run.workers, device=run.device, check=run.check, is_timing=True
    ) as map_tasks:
        for _, (found_on, timed) in map_tasks(tasks):
            if found_on != hardware:
                raise ValueError(
                    f"cost: a node is {found_on}, and this is {hardware}; start this and all nodes "
                    "on the same hardware"
                )
            for key, times in timed:
                kept.add(key, times)
            num_done += 1
            run.step(num_done, row=False)


def timer(
    config: ModelConfig, models: Models, dtype: str, device: str
) -> Callable[[TimingTask, Tell], Timed]:
    """Return what times a round, model after model."""
    engine = EngineTimes(config, dtype, device)

    def time_round(task: TimingTask, tell: Tell) -> Timed:
        r, wanted = task
        timed: list[tuple[str, Times]] = []
        for name, scenarios in wanted.items():
            blocks = models[name]
            with engine.open(name, blocks) as time:
                timed += [
                    (key_of(s, engine.hardware, config, blocks, r), time(s, r)) for s in scenarios
                ]
        return engine.hardware, timed

    return time_round
