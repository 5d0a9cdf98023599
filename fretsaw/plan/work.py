"""What a stage will do and hold, and what it runs on: the words of a forecast. No torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fretsaw.model.config import ModelConfig
from fretsaw.scenario.hardware import Device, find_device
from fretsaw.scenario.processor import NO_INT8
from fretsaw.scenario.scenario import Scenario

EFFICIENCY = 0.4  # of peak FLOP/s that training and scoring reach


@dataclass(frozen=True)
class Shapes:
    """What a stage reads: the names of its inputs, and the networks among them."""

    inputs: frozenset[str]
    models: Mapping[str, ModelConfig]  # "search" is its child; "model" what is made from nothing
    text_bytes: int = 0  # of files that are there

    def __getitem__(self, name: str) -> ModelConfig:
        """Return the network of an input."""
        return self.models[name]

    def __contains__(self, name: str) -> bool:
        """Say whether the stage has this input."""
        return name in self.inputs


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on each device while a part of a stage runs."""

    name: str = ""  # where a stage has several
    weights: float = 0.0
    activations: float = 0.0  # and the frontier, Gram matrices
    optimizer: float = 0.0  # gradients and moments
    logits: float = 0.0
    cache: float = 0.0  # keys and values

    @property
    def memory(self) -> float:
        """All of it together."""
        return self.weights + self.activations + self.optimizer + self.logits + self.cache


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one stage takes."""

    uses: tuple[MemoryUse, ...] = ()
    tokens: float = 0.0  # read and written
    seconds: float
    disk: float = 0.0  # bytes that are left, resume states of the time it runs included
    remedy: str = ""  # where memory does not do, beside a larger device
    note: str = ""  # what is to be known of it on this hardware


@dataclass(frozen=True)
class Hardware:
    """What a stage runs on: `count` of the devices, for those that can use several."""

    device: Device
    dtype: str  # of matrix work where a stage casts it: "fp32" or "bf16"

    @classmethod
    def of(cls, name: str) -> "Hardware":
        """Return a device by its name, with bf16 but on a CPU."""
        device = find_device(name)
        return cls(device, "fp32" if device.name == "cpu" else "bf16")

    @property
    def alone(self) -> "Hardware":
        """One of the devices."""
        return replace(self, device=replace(self.device, count=1))

    @property
    def count(self) -> int:
        """How many devices there are."""
        return self.device.count

    def seconds(self, flops: float) -> float:
        """Return the time of matrix products at the share of the peak that stages reach."""
        return flops / (EFFICIENCY * self.device.flops(self.dtype))

    def note_of(self, precisions: Collection[str]) -> str:
        """Return what is to be known of matrices in these precisions, "" where nothing is."""
        return NO_INT8 if "int8" in precisions and not self.device.multiplies_int8 else ""

    def scenario(self, **fields: Any) -> Scenario:
        """Return a way of decoding on one of the devices, as stages load weights: in fp32."""
        return Scenario(dtype="fp32", device=self.device.name, **fields)

    def multiplying(self, *, casts: bool) -> "Hardware":
        """Return it in the precision of a stage's products: where it doesn't cast them, fp32."""
        return self if casts else replace(self, dtype="fp32")
