"""What a device can do: FLOP/s, memory, bytes/s, links. Standard library only.

Figures are the vendors' datasheets: NVIDIA A100, H100 (SXM5), H200, L40S and HGX B200, and the Ada
whitepaper for the RTX 4090. They are dense, never the doubled "with sparsity" ones; fp32 is the
plain one, without TF32. Where a chip has no fp8 units, fp8 runs at the bf16 rate; int8 is with
sums in 32 bits, as when both sides are integers. No datasheet
states latencies: that of a launch is our estimate for an engine without CUDA graphs, that of a
small all-reduce our estimate for the kind of link. The whole "cpu" row is an estimate, but for
whether it multiplies integers: that is asked of the processor at hand.
"""

import difflib
import re
from dataclasses import dataclass, replace

from fretsaw.scenario.processor import multiplies_int8


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of device, `count` of them; all figures but the totals are per device."""

    name: str
    bf16_flops: float  # FLOP/s
    fp32_flops: float  # FLOP/s
    fp8_flops: float  # FLOP/s
    int8_flops: float  # integer operations a second
    memory_bytes: float
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s to the other devices, both directions together
    launch_s: float  # an estimate
    all_reduce_latency_s: float  # of one however small, among up to 8: an estimate by kind of link
    count: int = 1
    multiplies_int8: bool = True  # else matrices in int8 are held and multiplied as float32

    def flops(self, dtype: str) -> float:
        """Return the peak FLOP/s of all `count` devices for matrix products in `dtype`."""
        match dtype:
            case "fp32":
                peak = self.fp32_flops
            case "fp8":
                peak = self.fp8_flops
            case "int8":
                peak = self.int8_flops if self.multiplies_int8 else self.fp32_flops
            case "bf16" | "fp16":
                peak = self.bf16_flops
            case _:
                raise ValueError(
                    f"{dtype!r} is no number format; use bf16, fp16, fp32, fp8 or int8"
                )
        return self.count * peak

    @property
    def total_memory_bytes(self) -> float:
        """Memory of all `count` devices."""
        return self.count * self.memory_bytes

    @property
    def total_bandwidth(self) -> float:
        """Bytes/s that all `count` devices read from their own memory."""
        return self.count * self.memory_bandwidth

    def all_reduce_s(self, num_bytes: float) -> float:
        """Seconds to sum `num_bytes` over the devices: latency and transfer; 0 for one device."""
        return self.all_reduce_latency_s + self.transfer_s(num_bytes) if self.count > 1 else 0.0

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds in which a ring of the devices moves what summing `num_bytes` takes.

        Each device sends and receives 2 (n - 1) / n of the bytes, and `link_bandwidth` counts both
        directions.
        """
        return 2 * 2 * (self.count - 1) / self.count * num_bytes / self.link_bandwidth


# Seconds of a small all-reduce: kernels that write to their peers, NCCL, and shared memory.
ALL_REDUCE_LATENCY_S = {"nvlink": 12e-6, "pcie": 40e-6, "memory": 60e-6}


def _gpu(
    name: str, bf16_tflops: float, fp32_tflops: float, fp8_tflops: float, int8_tops: float,
    gb: float, gb_s: float, link_gb_s: float, link: str = "nvlink",
) -> Device:  # fmt: skip
    return Device(
        name=name,
        bf16_flops=bf16_tflops * 1e12,
        fp32_flops=fp32_tflops * 1e12,
        fp8_flops=fp8_tflops * 1e12,
        int8_flops=int8_tops * 1e12,
        memory_bytes=gb * 1e9,
        memory_bandwidth=gb_s * 1e9,
        link_bandwidth=link_gb_s * 1e9,
        launch_s=3e-6,
        all_reduce_latency_s=ALL_REDUCE_LATENCY_S[link],
    )


_CPU = Device(  # a two-core laptop with AVX2 and VNNI: rough, one significant figure
    name="cpu",
    bf16_flops=5e10,  # emulated: slower than fp32
    fp32_flops=1e11,
    fp8_flops=5e10,
    int8_flops=4e11,
    memory_bytes=8e9,
    memory_bandwidth=2e10,
    link_bandwidth=1e9,
    launch_s=5e-6,
    all_reduce_latency_s=ALL_REDUCE_LATENCY_S["memory"],
)

# name: bf16, fp32, fp8 TFLOP/s, int8 TOP/s; GB; GB/s of memory; GB/s of NVLink (PCIe 4.0 x16 for
# the last two)
DEVICES = {
    device.name: device
    for device in (
        _gpu("a100-40", 312, 19.5, 312, 624, 40, 1555, 600),
        _gpu("a100-80", 312, 19.5, 312, 624, 80, 2039, 600),
        _gpu("h100", 989.4, 66.9, 1978.9, 1978.9, 80, 3350, 900),
        _gpu("h200", 989.4, 66.9, 1978.9, 1978.9, 141, 4800, 900),
        _gpu("b200", 2250, 75, 4500, 4500, 180, 8000, 1800),
        _gpu("l40s", 362.05, 91.6, 733, 733, 48, 864, 64, "pcie"),
        _gpu("rtx4090", 165.2, 82.6, 330.3, 660.6, 24, 1008, 64, "pcie"),
        _CPU,
    )
}


def find_device(name: str) -> Device:
    """Return the device called `name`: "h100", or "h100x8" for eight of them.

    Raises `ValueError` with the nearest known name.
    """
    counted = re.fullmatch(r"(.+)x([1-9]\d*)", name)
    plain, count = name, 1
    if counted is not None and name not in DEVICES:
        plain, count = counted[1], int(counted[2])
    if plain in DEVICES:
        is_able = plain != "cpu" or multiplies_int8()
        return replace(DEVICES[plain], count=count, multiplies_int8=is_able)
    stem = counted[1] if counted else name
    nearest = difflib.get_close_matches(stem, DEVICES, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"device {name!r} is unknown; {hint}known: {', '.join(DEVICES)}, or DEVICExN")
