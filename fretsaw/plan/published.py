"""Published models foreseen: what fits and how fast, beside what their papers say.

A speed is a roofline's, with two efficiencies (of FLOP/s and of memory bandwidth) fitted on the
published rates of the *parents* alone; what is foreseen of a child, and of a child over its parent,
is none of the points that were fitted. Memory is exact. Standard library and scipy; no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fretsaw.model.config import ModelConfig, RopeScaling
from fretsaw.model.size import BYTES_PER_ELEMENT, kv_bytes, num_params
from fretsaw.scenario.hardware import find_device
from fretsaw.scenario.roofline import Constants, network_ms
from fretsaw.scenario.scenario import Scenario

Metric = Literal["throughput", "decode"]


def _llama_3(layers: int, hidden: int, heads: int, width: int, factor: float) -> ModelConfig:
    return ModelConfig.uniform(
        num_hidden_layers=layers,
        num_key_value_heads=8,
        intermediate_size=width,
        vocab_size=128_256,
        hidden_size=hidden,
        num_attention_heads=heads,
        head_dim=128,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(
            factor=factor,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        bos_token_id=128_000,
        eos_token_ids=(128_001, 128_008, 128_009),
    )


LLAMA_8B = _llama_3(32, 4096, 32, 14_336, 8.0)
LLAMA_70B = _llama_3(80, 8192, 64, 28_672, 8.0)
LLAMA_405B = _llama_3(126, 16_384, 128, 53_248, 8.0)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A network as it is served; where the scenario's batch does not fit, what fits."""

    config: ModelConfig
    scenario: str

    @property
    def fitted(self) -> Scenario:
        """The scenario, at the batch that fits into the devices' whole memory."""
        wanted = Scenario.parse(self.scenario)
        row = wanted.prompt_tokens + wanted.output_tokens
        fits = cached_tokens(self.config, wanted.device, wanted.dtype) // row
        if not fits:
            raise ValueError(
                f"plan: {num_params(self.config) / 1e9:.4g}B parameters in {wanted.dtype} leave no "
                f"room for one request of {row} tokens on {wanted.device}; take more devices"
            )
        return replace(wanted, batch=min(wanted.batch, fits))

    def tokens_per_s(self, metric: Metric, constants: Constants) -> float:
        """Return what one device generates, prompts read too; or what one request sees."""
        scenario = self.fitted
        ms = network_ms(self.config, scenario, constants)
        if metric == "decode":
            return 1e3 * scenario.output_tokens / ms["decode_ms"]
        made = scenario.batch * scenario.output_tokens
        return 1e3 * made / sum(ms.values()) / find_device(scenario.device).count


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A published speed, in tokens/s: of a device ("throughput") or a request ("decode")."""

    what: str
    served: Deployment
    metric: Metric
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published ratio of two speeds."""

    what: str
    faster: Deployment
    slower: Deployment
    metric: Metric
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Cache:
    """How many tokens' keys and values are said to fit beside the weights."""

    device: str
    dtype: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published model: networks by name, the parent first, and what is said of them."""

    title: str
    models: Mapping[str, ModelConfig]
    claims: tuple[Claim, ...] = ()
    caches: tuple[Cache, ...] = ()


THROUGHPUT = "batch=256,in=128,out=1024,dtype=fp8,device=h100"
LONG_PROMPTS = "batch=256,in=2048,out=128,dtype=fp8,device=h100"
ONE_REQUEST = "batch=1,in=128,out=1024,dtype=fp8,device=h100x8"

# Llama-3.1-70B: arXiv 2411.19146, TensorRT-LLM, FP8, tokens/s a GPU; the batch is not stated there.
# Llama-3.1-405B: arXiv 2503.18908, one request on 8 H100, its length and precision not stated; only
# FP8 fits.
PARENTS_RATES = (
    Rate(
        what="Llama-3.1-70B, 128 in 1024 out, 1 GPU",
        served=Deployment(config=LLAMA_70B, scenario=THROUGHPUT),
        metric="throughput",
        tokens_per_s=1274,
    ),
    Rate(
        what="Llama-3.1-70B, 128 in 1024 out, 4 GPUs",
        served=Deployment(config=LLAMA_70B, scenario=THROUGHPUT + "x4"),
        metric="throughput",
        tokens_per_s=2975,
    ),
    Rate(
        what="Llama-3.1-70B, 2048 in 128 out, 1 GPU",
        served=Deployment(config=LLAMA_70B, scenario=LONG_PROMPTS),
        metric="throughput",
        tokens_per_s=301,
    ),
    Rate(
        what="Llama-3.1-70B, 2048 in 128 out, 4 GPUs",
        served=Deployment(config=LLAMA_70B, scenario=LONG_PROMPTS + "x4"),
        metric="throughput",
        tokens_per_s=339,
    ),
    Rate(
        what="Llama-3.1-405B, one request, 8 GPUs",
        served=Deployment(config=LLAMA_405B, scenario=ONE_REQUEST),
        metric="decode",
        tokens_per_s=41.44,
    ),
)


def cached_tokens(config: ModelConfig, device: str, dtype: str) -> int:
    """Return how many tokens' keys and values fit beside the weights, all memory used."""
    weights = num_params(config) * BYTES_PER_ELEMENT[dtype]
    free = find_device(device).total_memory_bytes - weights
    return max(0, int(free / kv_bytes(config, dtype)))


def fit_efficiencies(rates: tuple[Rate, ...] = PARENTS_RATES) -> Constants:
    """Return the two efficiencies by which the rates are foreseen best, latencies as estimated.

    Least squares of log(foreseen / published).
    """
    import numpy as np
    from scipy.optimize import least_squares

    (device,) = {find_device(rate.served.fitted.device).name for rate in rates}
    own = Constants.of(find_device(device))

    def constants(logs: np.ndarray) -> Constants:
        flops, bandwidth = np.exp(logs).tolist()
        return replace(own, flops_efficiency=flops, bandwidth_efficiency=bandwidth)

    def errors(logs: np.ndarray) -> list[float]:
        chosen = constants(logs)
        foreseen = [rate.served.tokens_per_s(rate.metric, chosen) for rate in rates]
        return [np.log(f / r.tokens_per_s) for f, r in zip(foreseen, rates, strict=True)]

    guesses = [np.log([flops, 0.7]) for flops in (0.3, 0.7)]
    fits = [least_squares(errors, guess, bounds=(-3.0, 0.0)) for guess in guesses]
    return constants(min(fits, key=lambda fit: fit.cost).x)


# --- text -----------------------------------------------------------------------------------------


def render_published(model: Published) -> str:
    """Write sizes, caches and speeds as aligned text for a terminal of 100 columns."""
    lines = [model.title, "", f"{'':<12}{'parameters':>17}{'layers':>8}{'attention':>11}{'FFNs':>6}"
             f"{'GB in bf16':>12}{'in fp8':>8}{'KV bytes/token in fp8':>24}"]  # fmt: skip
    for name, config in model.models.items():
        attention = sum(block.attention != "none" for block in config.blocks)
        ffns = sum(block.ffn != "none" for block in config.blocks)
        gb = {d: num_params(config) * BYTES_PER_ELEMENT[d] / 1e9 for d in ("bf16", "fp8")}
        lines.append(
            f"{name:<12}{num_params(config):>17,}{config.num_hidden_layers:>8}{attention:>11}"
            f"{ffns:>6}{gb['bf16']:>12.1f}{gb['fp8']:>8.1f}{kv_bytes(config, 'fp8'):>24,}"
        )
    lines += ["", "tokens whose keys and values fit beside the weights, all memory used:",
              f"{'':<12}{'h100, fp8':>14}{'h100x8, fp8':>14}{'h100x8, bf16':>14}"]  # fmt: skip
    for name, config in model.models.items():
        places = (("h100", "fp8"), ("h100x8", "fp8"), ("h100x8", "bf16"))
        fits = [cached_tokens(config, device, dtype) for device, dtype in places]
        lines.append(f"{name:<12}" + "".join(f"{f:>14,}" if f else f"{'-':>14}" for f in fits))
    child = list(model.models.values())[-1]
    for cache in model.caches:
        ours = cached_tokens(child, cache.device, cache.dtype)
        lines.append(f"published for {cache.device} in {cache.dtype}: {cache.tokens:,} "
                     f"({ours / cache.tokens - 1:+.0%})")  # fmt: skip
    return "\n".join([*lines, *_claim_lines(model)]) if model.claims else "\n".join(lines)


def _claim_lines(model: Published) -> list[str]:
    constants = fit_efficiencies()
    lines = ["", f"{'speed over the parent, by roofline':<60}{'foreseen':>10}{'published':>11}"
             f"{'off':>8}"]  # fmt: skip
    for claim in model.claims:
        speeds = [s.tokens_per_s(claim.metric, constants) for s in (claim.faster, claim.slower)]
        ratio = speeds[0] / speeds[1]
        lines.append(
            f"{claim.what:<60}{ratio:>9.2f}x{claim.ratio:>10.2f}x{ratio / claim.ratio - 1:>+8.1%}"
        )
        lines += [
            f"    {num_params(side.config) / 1e9:>6.1f}B at {side.fitted}: {speed:,.1f} tokens/s"
            for side, speed in zip((claim.faster, claim.slower), speeds, strict=True)
        ]
    lines += [
        "",
        f"efficiencies {constants.flops_efficiency:.2f} of peak FLOP/s and "
        f"{constants.bandwidth_efficiency:.2f} of bandwidth, fitted on the parents' rates alone:",
        f"{'tokens/s':<60}{'fitted':>10}{'published':>11}{'off':>8}",
    ]
    for rate in PARENTS_RATES:
        fitted = rate.served.tokens_per_s(rate.metric, constants)
        lines.append(f"{rate.what:<60}{fitted:>10.1f}{rate.tokens_per_s:>11,.1f}"
                     f"{fitted / rate.tokens_per_s - 1:>+8.1%}")  # fmt: skip
    lines.append("(the batch is the scenario's, or what fits: the devices' whole memory)")
    return lines
