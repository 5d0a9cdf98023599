"""What a program may take. Standard library only, as is all of this room."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may take; time on the processor decides, not the clock of a busy machine."""

    cpu_s: float = 6.0
    """Seconds on the processor, as the kernel accounts for them when the program has ended."""
    wall_s: float = 60.0
    """Seconds by the clock, for what sleeps or waits without end."""
    memory_mib: int = 1024
    """Address space. There are no child processes, so this is all that the program can hold."""
    output_mib: int = 8
    """What it may write to each of standard output, standard error and a file."""
    disk_mib: int = 32
    """All files together (bubblewrap; with Landlock it can write none)."""
    num_threads: int = 64
    """Threads at one time. Landlock without root does not count them."""

    def __post_init__(self) -> None:
        for name in ("cpu_s", "wall_s", "memory_mib", "output_mib", "disk_mib", "num_threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)}; a limit is above 0")
