"""Ray as a pool: tasks that Ray places, restarts and moves to other nodes when one is lost.

This very package travels with the job; what it imports must be installed on the nodes (the same
Python and Ray among it), and the folders that a stage reads must be at the same paths there.
"""

import contextlib
import functools
import logging
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fretsaw
from fretsaw.distributed.task import (
    CHECK_EVERY_S,
    MAX_LOSSES,
    Do,
    Hear,
    MapTasks,
    Prepare,
    ignore,
    lost,
)
from fretsaw.stage.attempt import attempt
from fretsaw.stage.workers import Workers

DEADLINE_S = 30.0
PROBE = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"


@contextlib.contextmanager
def ray_pool(
    prepare: Prepare,
    workers: Workers,
    device: str,
    check: Callable[[], None],
    *,
    is_timing: bool = False,
) -> Iterator[MapTasks]:
    """Open a pool over a Ray cluster; a task takes one CPU, on cuda one GPU as well."""
    try:
        import ray
    except ImportError:
        raise ValueError("--ray: Ray is not installed here; pip install 'fretsaw[ray]'") from None
    require_answer(workers.ray)
    package = str(Path(fretsaw.__file__).parent)
    stop = signal.getsignal(signal.SIGTERM)
    ray.init(
        workers.ray,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"py_modules": [package]},
    )
    signal.signal(signal.SIGTERM, stop)  # Ray puts its own in place, which would not save
    try:
        num_gpus = int(device.startswith("cuda"))
        pool = RayPool(prepare, workers.workers, check, {"num_cpus": 1, "num_gpus": num_gpus})
        if is_timing:
            pool.num_threads = torch.get_num_threads()
            pool.resources["num_cpus"] = cpus_of_each(ray.nodes())  # all: nobody else has room
        yield pool.map
    finally:
        ray.shutdown()  # ends the job's workers on all nodes


def require_answer(address: str, deadline_s: float = DEADLINE_S) -> None:
    """Raise `ValueError` where no Ray cluster answers in time.

    Asked in a process of its own: Ray tries for two minutes, cannot be interrupted, and then ends
    the process.
    """
    remedy = "start one with `ray start --head`, and give its host:port"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, address],
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"--ray {address}: no Ray cluster answers there within {deadline_s:.0f} s; {remedy}"
        ) from None
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        raise ValueError(f"--ray {address}: Ray does not connect ({reason}); {remedy}")


def cpus_of_each(nodes: Sequence[Mapping[str, Any]]) -> float:
    """Return the CPUs that every node has, which must be as many, on a machine of its own."""
    able = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    hosts = [node["NodeManagerHostname"] for node in able]
    shared = sorted({host for host in hosts if hosts.count(host) > 1})
    if shared:
        raise ValueError(
            f"--ray: {hosts.count(shared[0])} nodes are on one machine, {shared[0]}, and would "
            "slow one another while time is measured; start one node a machine"
        )
    cpus = sorted({node["Resources"]["CPU"] for node in able})
    if len(cpus) != 1:
        raise ValueError(
            f"--ray: nodes with {' and '.join(f'{n:g}' for n in cpus) or 'no'} CPUs; what is "
            "measured must be of one hardware, so give nodes that are alike"
        )
    return cpus[0]


class RayPool:
    """A Ray cluster that this process is connected to; each task takes `resources` of it."""

    def __init__(
        self,
        prepare: Prepare,
        limit: int,
        check: Callable[[], None],
        resources: dict[str, float],
    ):
        self.pickled, self.limit, self.check = pickle.dumps(prepare), limit, check
        self.resources, self.num_threads = resources, 1

    def map(self, tasks: Sequence[Any], hear: Hear = ignore) -> Iterator[tuple[int, Any]]:
        """Hand the tasks to Ray; what they say on the way is not heard."""
        import ray
        from ray.exceptions import RayError

        do = ray.remote(_do).options(max_retries=MAX_LOSSES, **self.resources)
        todo = deque(range(len(tasks)))
        under_way: dict[Any, int] = {}
        while todo or under_way:
            while todo and len(under_way) < (self.limit or len(tasks)):
                index = todo.popleft()
                under_way[do.remote(self.pickled, tasks[index], self.num_threads)] = index
            self.check()
            for done in ray.wait(list(under_way), timeout=CHECK_EVERY_S)[0]:
                index = under_way.pop(done)
                try:
                    outcome, value = ray.get(done)
                except RayError as error:
                    raise lost(index, tasks[index], MAX_LOSSES + 1, str(error)) from error
                if outcome == "raised":
                    raise value
                yield index, value


def _do(pickled: bytes, task: Any, num_threads: int) -> tuple[str, Any]:
    """Do one task in a process of Ray's, which keeps what it has prepared for the next."""
    torch.set_num_threads(num_threads)
    return attempt(lambda: _prepared(pickled)(task, lambda said: None))


@functools.lru_cache(maxsize=1)
def _prepared(pickled: bytes) -> Do:
    return pickle.loads(pickled)()
