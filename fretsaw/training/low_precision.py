"""AdamW that fits: moments in bf16 or 8 bits, weights in bf16, moments in the host's memory.

The arithmetic of a step is float32 whatever is kept; only what stays between steps is rounded, and
always at random (stochastic rounding), so that its expectation is exact and a slow decay is not
swallowed. The random bits are a function of (seed, step, parameter): a resumed run repeats them.
Parameters are updated in slices, so that the float32 copies of a large matrix never exist at once.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from fretsaw.training.settings import MOMENT_BLOCK as BLOCK
from fretsaw.training.settings import MOMENT_SLICE as SLICE
from fretsaw.training.settings import SMALL_PARAMETER

States = Literal["fp32", "bf16", "int8"]


# --- numbers --------------------------------------------------------------------------------------


def round_to_bf16(x: Float[Tensor, "*shape"], generator: torch.Generator) -> Tensor:
    """Round float32 to one of the two nearest bfloat16, at random, with expectation x.

    A bfloat16 is the upper half of a float32: 16 random bits are added to the lower half, then the
    lower half is dropped. What is not finite stays so (a NaN's bits would run over into those of a
    number), and what is finite too: beyond the largest bfloat16 it is rounded towards zero.
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(
        0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    rounded = ((bits + noise) & ~0xFFFF).view(torch.float32)
    nearer_zero = (bits & ~0xFFFF).view(torch.float32)
    rounded = torch.where(rounded.isfinite(), rounded, nearer_zero)
    return torch.where(x.isfinite(), rounded, x).bfloat16()


def quantise(
    x: Float[Tensor, "rows columns"], power: int, levels: int, generator: torch.Generator
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows blocks"]]:
    """Return the codes of |x| in 0..levels and the largest |x| of every block of `BLOCK` columns.

    A code c stands for (c / levels)^power of its block's largest: the power spends the levels on
    small values, of which moments have many. Rounded at random between the two nearest codes, so
    the expectation is |x|.
    """
    columns = x.shape[1]
    scale = _blocks(x.abs()).amax(-1)
    share = x.abs() / _spread(scale, columns).clamp_min(torch.finfo(torch.float32).tiny)
    lower = (share.pow(1 / power) * levels).floor().clamp(0, levels - 1)
    at, above = (lower / levels).pow(power), ((lower + 1) / levels).pow(power)
    chance = torch.rand(x.shape, device=x.device, generator=generator)
    return lower + (chance * (above - at) < share - at), scale


def dequantise(
    codes: Float[Tensor, "rows columns"], scale: Float[Tensor, "rows blocks"], power: int,
    levels: int,
) -> Float[Tensor, "rows columns"]:  # fmt: skip
    """Return scale * (codes / levels)^power."""
    return _spread(scale, codes.shape[1]) * (codes / levels).pow(power)


def _blocks(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows blocks block"]:
    padding = -x.shape[1] % BLOCK
    return torch.nn.functional.pad(x, (0, padding)).view(x.shape[0], -1, BLOCK)


def _spread(scale: Float[Tensor, "rows blocks"], columns: int) -> Float[Tensor, "rows columns"]:
    return scale.repeat_interleave(BLOCK, dim=1)[:, :columns]


# --- moments --------------------------------------------------------------------------------------

FIRST_POWER, FIRST_LEVELS = 2, 127  # signed
SECOND_POWER, SECOND_LEVELS = 4, 255


def store_first(
    m: Float[Tensor, "rows columns"], generator: torch.Generator
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, "rows blocks"]]:
    """Return the first moment in 8 bits: a sign and 127 quadratic levels."""
    codes, scale = quantise(m, FIRST_POWER, FIRST_LEVELS, generator)
    return (codes * m.sign()).to(torch.int8), scale


def load_first(
    codes: Int8[Tensor, "rows columns"], scale: Float[Tensor, "rows blocks"]
) -> Float[Tensor, "rows columns"]:
    """Return the first moment in float32."""
    codes = codes.float()
    return dequantise(codes.abs(), scale, FIRST_POWER, FIRST_LEVELS) * codes.sign()


def store_second(
    v: Float[Tensor, "rows columns"], generator: torch.Generator
) -> tuple[UInt8[Tensor, "rows columns"], Float[Tensor, "rows blocks"]]:
    """Return the second moment in 8 bits: 255 levels of the fourth power.

    What is positive never becomes 0, under which a step would have no bound.
    """
    codes, scale = quantise(v, SECOND_POWER, SECOND_LEVELS, generator)
    return torch.where(v > 0, codes.clamp_min(1), codes).to(torch.uint8), scale


def load_second(
    codes: UInt8[Tensor, "rows columns"], scale: Float[Tensor, "rows blocks"]
) -> Float[Tensor, "rows columns"]:
    """Return the second moment in float32."""
    return dequantise(codes.float(), scale, SECOND_POWER, SECOND_LEVELS)


# --- the optimizer --------------------------------------------------------------------------------


class LeanAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) with its moments as `states` says, in host memory if offloaded.

    Weights in bfloat16 are rounded at random after the float32 step. 8-bit moments have a scale for
    every 128 elements of a row (after arXiv 2110.02861; the levels are ours).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        states: States,
        offload: bool = False,
        seed: int = 0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": 1e-8, "seed": seed, "draws": 0}
        super().__init__(list(groups), {**defaults, "weight_decay": 0.0})
        self.states, self.offload = states, offload

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for at, group in enumerate(self.param_groups):
            group["draws"] += 1
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= self._fresh(parameter)
                state["step"] += 1
                key = np.random.SeedSequence([group["seed"], group["draws"], at, index])
                generator = torch.Generator(parameter.device)
                generator.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
                for rows in _slices(_matrix(parameter)):
                    _update(parameter, state, rows, group, generator)
        if self.offload and torch.cuda.is_available():
            torch.cuda.synchronize()  # the host may read the moments from here on

    def _fresh(self, parameter: Tensor) -> dict[str, Any]:
        like = _matrix(parameter)
        is_cuda = parameter.device.type == "cuda"

        def zeros(columns: int, dtype: torch.dtype) -> Tensor:
            shape = (like.shape[0], columns)
            if self.offload:
                return torch.zeros(shape, dtype=dtype, pin_memory=is_cuda)
            return torch.zeros(shape, dtype=dtype, device=parameter.device)

        columns = like.shape[1]
        if self.states == "int8" and parameter.numel() > SMALL_PARAMETER:
            blocks = -(-columns // BLOCK)
            return {
                "step": 0,
                "first": zeros(columns, torch.int8),
                "first_scale": zeros(blocks, torch.float32),
                "second": zeros(columns, torch.uint8),
                "second_scale": zeros(blocks, torch.float32),
            }
        is_bf16 = self.states == "bf16" and parameter.numel() > SMALL_PARAMETER
        dtype = torch.bfloat16 if is_bf16 else torch.float32
        return {"step": 0, "first": zeros(columns, dtype), "second": zeros(columns, dtype)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take saved moments as they are: torch would cast them to the parameters' dtype."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            state = self._fresh(parameters[index])
            for name, value in saved.items():
                if isinstance(value, Tensor):
                    state[name].copy_(value)
                else:
                    state[name] = value
            self.state[parameters[index]] = state


def _matrix(parameter: Tensor) -> Float[Tensor, "rows columns"]:
    """Return the parameter as rows of its last dim; writing to it writes to the parameter."""
    return parameter.detach().view(-1, parameter.shape[-1])


def _slices(matrix: Float[Tensor, "rows columns"]) -> Iterator[slice]:
    rows = max(1, SLICE // matrix.shape[1])
    for at in range(0, matrix.shape[0], rows):
        yield slice(at, at + rows)


def _update(
    parameter: Tensor, state: dict[str, Any], rows: slice, group: dict[str, Any],
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Do one step of some rows:

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """
    assert parameter.grad is not None, "only parameters with a gradient are updated"
    kept, device = _matrix(parameter)[rows], parameter.device

    def load(name: str) -> Tensor:
        return state[name][rows].to(device, non_blocking=True)

    is_int8 = state["first"].dtype == torch.int8
    if is_int8:
        m = load_first(load("first"), load("first_scale"))
        v = load_second(load("second"), load("second_scale"))
    else:
        m, v = load("first").float(), load("second").float()
    g, w = _matrix(parameter.grad)[rows].float(), kept.float()
    (beta1, beta2), lr, step = group["betas"], group["lr"], state["step"]
    m = m.lerp(g, 1 - beta1)
    v = v.lerp(g.square(), 1 - beta2)
    denominator = (v / (1 - beta2**step)).sqrt() + group["eps"]
    w = w * (1 - lr * group["weight_decay"]) - lr / (1 - beta1**step) * m / denominator

    kept.copy_(round_to_bf16(w, generator) if kept.dtype == torch.bfloat16 else w)
    if is_int8:
        first, first_scale = store_first(m, generator)
        second, second_scale = store_second(v, generator)
        state["first_scale"][rows].copy_(first_scale, non_blocking=True)
        state["second_scale"][rows].copy_(second_scale, non_blocking=True)
    elif state["first"].dtype == torch.bfloat16:
        first, second = round_to_bf16(m, generator), round_to_bf16(v, generator)
    else:
        first, second = m, v
    state["first"][rows].copy_(first, non_blocking=True)
    state["second"][rows].copy_(second, non_blocking=True)
