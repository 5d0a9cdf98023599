"""Whether a device has room for the weights of a checkpoint, before any of them is read."""

from pathlib import Path

import torch

from fretsaw.model.decoder import Decoder
from fretsaw.scenario.free_memory import free_bytes
from fretsaw.scenario.scenario import MIB


def require_memory(
    folder: Path, decoder: Decoder, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise where the weights alone, which have no storage yet, are more than the device has free.

    Those in 8 bits are buffers, kept as they are.
    """

    def num_bytes(dtype: torch.dtype) -> int:
        kept = sum(buffer.numel() * buffer.itemsize for buffer in decoder.buffers())
        return kept + dtype.itemsize * sum(weight.numel() for weight in decoder.parameters())

    free, needed = _free_bytes(device), num_bytes(dtype)
    if needed <= free:
        return
    half = num_bytes(torch.bfloat16)
    remedy = "take a smaller model or a machine with more memory, or free some"
    if half <= free:
        remedy += f"; in bf16 ({half / MIB:,.1f} MiB) generate, chat and serve would load it"
    raise ValueError(
        f"{folder}: its weights take {needed / MIB:,.1f} MiB as {str(dtype).removeprefix('torch.')}"
        f", but {max(free, 0) / MIB:,.1f} MiB are free on {device}, room for "
        f"{max(free, 0) / dtype.itemsize / 1e6:,.1f} million parameters; {remedy}"
    )


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return free_bytes()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
