"""Settings of the speed measurement."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Serve parent and child in turn at a scenario, and compare their speed."""

    scenario: str = "batch=64,in=64,out=64,dtype=fp32,device=cpu"
    """What is served, and on what."""
    rounds: int = 9
    """Interleaved repetitions; medians of the ratios count."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds {self.rounds}: at least 1 is needed")
