"""Who does a stage's independent tasks: this process, several of this machine, a Ray cluster."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where independent tasks are done. A result is the same with any number of workers."""

    workers: int = 0
    """Processes that share the work, with one thread each, on cuda a GPU each in turn; 0: this one,
    with all its threads. With --ray: tasks at a time, 0 for as many as the cluster takes."""
    ray: str = ""
    """Share the work over a Ray cluster: its address as host:port, or auto for one started here."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: give 0 or a number of processes")


HERE = Workers()
