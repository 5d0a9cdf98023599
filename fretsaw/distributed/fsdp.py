"""Fully sharded data parallelism, applied to the plain `Decoder` from outside.

Every process holds a part of every parameter, gradient and optimizer state (FSDP2). Each block is
gathered when it runs and given up after it; embeddings, final norm and head form one more unit,
which stays gathered from the forward to the backward, so that losses can use the head's matrix.
"""

from collections.abc import Callable

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fretsaw.distributed.mesh import mesh
from fretsaw.model.decoder import Decoder
from fretsaw.stage.peers import Peers


def shard(decoder: Decoder, peers: Peers, device: str) -> None:
    """Split a decoder that every process holds whole; blocks may differ or be empty.

    Gradients are summed over the processes: each divides its loss by the *global* token count.
    """
    axis = mesh(peers, device)
    for block in decoder.model.layers:
        fully_shard(block, mesh=axis)
    fully_shard(decoder, mesh=axis)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    register_fsdp_forward_method(decoder, "hidden_states")


def write_whole(module: nn.Module, peers: Peers, write: Callable[[], None]) -> None:
    """Call `write` on rank 0 alone, which asks for the module's whole weights one by one.

    The weights of a sharded decoder, or of its factors, are gathered in the order of the state
    dict, so `write` must ask for each of them once and in that order (`shards.write_tensors` does).
    """
    if peers.rank == 0:
        write()
        return
    for tensor in module.state_dict().values():
        assert isinstance(tensor, DTensor), "several processes, but the module is not sharded"
        tensor.full_tensor()
