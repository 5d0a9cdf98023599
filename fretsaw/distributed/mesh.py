"""Joining the processes that torchrun started into one group, and the mesh they span."""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fretsaw.stage.peers import Peers


def join(peers: Peers, device: str) -> None:
    """Form the process group: gloo on CPUs, NCCL beside it where each process has a GPU.

    What the processes tell one another as objects always goes over gloo.
    """
    if ":" in device:
        raise ValueError(
            f"--device {device}: {peers.size} processes were started, and each takes a GPU of its "
            "own; give --device cuda"
        )
    backend = "gloo"
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise ValueError(
                f"--device {device}: process {local_rank} of this machine finds {num_gpus} GPUs; "
                "start as many processes as there are GPUs, or give --device cpu"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)


def leave() -> None:
    """Dissolve the process group."""
    dist.destroy_process_group()


def mesh(peers: Peers, device: str) -> DeviceMesh:
    """Return the one axis over which parameters are split: all processes."""
    return init_device_mesh(torch.device(device).type, (peers.size,))
