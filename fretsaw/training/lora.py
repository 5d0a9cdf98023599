"""LoRA (arXiv 2106.09685): small trained factors beside frozen matrices, put on from outside.

The decoder stays a plain Decoder but for its Linear modules, which are wrapped; `merge` takes the
wraps off again and leaves the product in the weights.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fretsaw.model.decoder import Decoder
from fretsaw.training.settings import LoraSettings


class Factors(nn.Module):
    """The two factors of one matrix: `down` starts small and random, `up` at 0."""

    def __init__(self, rank: int, linear: nn.Linear, generator: torch.Generator):
        super().__init__()
        bound = linear.in_features**-0.5
        down = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        like = linear.weight
        self.down = nn.Parameter(down.to(like))
        self.up = nn.Parameter(like.new_zeros(linear.out_features, rank))


class LoraLinear(nn.Module):
    """W x + alpha / rank * up (down x), with W frozen."""

    def __init__(self, linear: nn.Linear, factors: Factors, scale: float):
        super().__init__()
        self.linear, self.factors, self.scale = linear.requires_grad_(False), factors, scale

    def forward(self, x: Float[Tensor, "*tokens wide"]) -> Float[Tensor, "*tokens out"]:
        """Apply the matrix and its factors to every token."""
        update = F.linear(F.linear(x, self.factors.down), self.factors.up)
        return self.linear(x) + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the matrix with the product of its factors added."""
        update = self.scale * self.factors.up.float() @ self.factors.down.float()
        self.linear.weight.copy_(self.linear.weight.float() + update)
        return self.linear.requires_grad_(True)


def adapt(decoder: Decoder, settings: LoraSettings, seed: int) -> nn.ModuleDict:
    """Freeze the decoder, wrap the named matrices of its blocks, and return what is trained.

    Raises `ValueError` where a name is no matrix of the decoder.
    """
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    factors = nn.ModuleDict()
    named = [
        (name, module)
        for name, module in decoder.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    known = sorted({name.rpartition(".")[2] for name, _ in named})
    defaults = LoraSettings().lora_matrices
    for wanted in settings.lora_matrices:
        if wanted not in known and wanted not in defaults:
            raise ValueError(
                f"lora_matrices: {wanted!r} is no matrix of this model; it has {', '.join(known)}"
            )
    for name, linear in named:
        parent, _, last = name.rpartition(".")
        if last in settings.lora_matrices:
            own = Factors(settings.lora_rank, linear, generator)
            scale = settings.lora_alpha / settings.lora_rank
            setattr(
                decoder.model.layers.get_submodule(parent), last, LoraLinear(linear, own, scale)
            )
            factors[name.replace(".", "/")] = own
    if not factors:
        raise ValueError(
            f"lora_matrices: {', '.join(settings.lora_matrices)}, but the model has only "
            f"{', '.join(known)}; name one of these"
        )
    return factors


def by_module(factors: nn.Module) -> dict[str, Factors]:
    """Return what `adapt` gave by the names that the decoder has for the matrices, in order."""
    return {
        f"model.layers.{name.replace('/', '.')}": own
        for name, own in factors.named_children()
        if isinstance(own, Factors)
    }


def merge(decoder: Decoder) -> None:
    """Put the plain matrices back, the product of their factors added, and train all again."""
    for name, module in list(decoder.model.layers.named_modules()):
        if isinstance(module, LoraLinear):
            parent, _, last = name.rpartition(".")
            setattr(decoder.model.layers.get_submodule(parent), last, module.merged())
    decoder.requires_grad_(True)
