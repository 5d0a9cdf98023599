"""A step's slices computed together or, where that fails, apart, so that only one at fault fails.

Computing a slice again is harmless: it writes the same keys and values to its own pages, and its
draw depends on its seed and place alone.
"""

import sys
import traceback
from collections.abc import Callable, Sequence

import torch

from fretsaw.engine.outcome import Outcome
from fretsaw.engine.sequence import Slice


def isolated(
    compute: Callable[[Sequence[Slice]], list[Outcome]],
    slices: Sequence[Slice],
    device: torch.device,
) -> list[Outcome]:
    """Return what comes of every slice; one that cannot be computed even by itself is at fault.

    Raises what was raised where the device is lost, since nothing can then be computed any more.
    """
    try:
        return compute(slices)
    except Exception as error:
        if is_device_lost(error, device):
            raise
        told = _told(error)
        if len(slices) == 1:
            sequence = slices[0].sequence
            _log(
                f"request {sequence.id} ({len(sequence.request.token_ids)} prompt tokens, "
                f"{sequence.num_generated} generated) failed: {told}"
            )
            traceback.print_exception(error, file=sys.stderr)
            return [Outcome(fault=told)]
    # Not in the handler: what the failed attempt had allocated lives as long as its traceback.
    _log(f"a step of {len(slices)} sequences failed ({told}); computing them apart")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(slices) // 2
    return [
        outcome
        for half in (slices[:middle], slices[middle:])
        for outcome in isolated(compute, half, device)
    ]


def is_device_lost(error: Exception, device: torch.device) -> bool:
    """Return whether an error leaves a device on which nothing can be computed any more."""
    if isinstance(error, torch.AcceleratorError):
        return True
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _told(error: Exception) -> str:
    """Return an error in one line."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"


def _log(line: str) -> None:
    print(f"engine: {line}", file=sys.stderr, flush=True)
