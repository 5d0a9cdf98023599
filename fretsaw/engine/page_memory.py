"""How much key-value memory an engine takes, and what becomes of the memory it frees."""

import ctypes
import os
import re
import sys
from pathlib import Path

import torch

from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import BYTES_PER_ELEMENT, kv_bytes, num_params

SHARE = {"cpu": 0.25, "cuda": 0.85}  # of what is free when the engine starts


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES, LARGEST_KEPT = 2**30, 2**25  # the second is the most that glibc allows


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one; elsewhere nothing changes.

    By default it may give a step's activations back to the kernel and fault them in again, page by
    page, depending on what the process has allocated before.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


def num_pages_for(
    decoder: Decoder, max_batch: int, page_size: int, memory_mib: float | None
) -> int:
    """Return the pages that `memory_mib` holds, or that the device can spare if None.

    Never more than `max_batch` whole contexts need. Raises ValueError where not one page fits.
    """
    per_page = page_bytes(decoder, page_size)
    wanted = max_batch * -(-decoder.config.max_position_embeddings // page_size)
    if not per_page:  # no layer attends
        return wanted
    if memory_mib is not None:
        allowed = memory_mib * 2**20
    else:
        allowed = SHARE[decoder.device.type] * free_bytes(decoder.device)
    num_pages = min(wanted, int(allowed / per_page))
    if num_pages < 1:
        raise ValueError(
            f"engine: {allowed / 2**20:.1f} MiB for keys and values, but a page of {page_size} "
            f"tokens takes {per_page / 2**20:.1f}; give it more memory"
        )
    return num_pages


def page_bytes(decoder: Decoder, page_size: int) -> int:
    """Return the bytes of one page, keys and values of all layers."""
    itemsize = decoder.model.embed_tokens.weight.dtype.itemsize
    return kv_bytes(decoder.config, "fp32") // 4 * itemsize * page_size


def free_bytes(device: torch.device) -> float:
    """Return what a device can still spare."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    return _available_bytes()


def free_beside(config: ModelConfig, device: torch.device) -> float:
    """Return what a device can still spare once it holds a network's weights in fp32."""
    return free_bytes(device) - num_params(config) * BYTES_PER_ELEMENT["fp32"]


def _available_bytes() -> float:
    """Return what programs can have of this machine, or of the container they run in."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.is_file():  # not Linux: half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    assert found, "the kernel tells no available memory"
    available = 1024.0 * int(found[1])
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, float(text))
    return available
