"""The engine against transformers' `generate`, on one random 10M-parameter model, in one run.

    python benchmarks/generation.py                      (make speed)
    python benchmarks/generation.py --threads 1 --rounds 5

Greedy, nothing ends early. Batches of 1, 8 and 32 with fixed lengths, then many requests with
long-tailed lengths, 32 at a time: transformers takes them in batches that end with their longest.
Ratios are medians over interleaved rounds; the noise floor is how far two runs of ours differ.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request
from fretsaw.engine.timing import describe_hardware
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params

SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 320,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 896,
    "num_hidden_layers": 7,
    "max_position_embeddings": 1024,
}
PROMPT, OUTPUT, BATCH = 32, 128, 32


def models(dtype: torch.dtype) -> tuple[Decoder, Any]:
    """Return the same network twice."""
    config = ModelConfig.uniform(**SHAPE, head_dim=40)
    decoder = Decoder(config)
    decoder.init_weights(0)
    theirs: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=config.rms_norm_eps))
    theirs.load_state_dict(decoder.state_dict())
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    print(f"{num_params(config) / 1e6:.1f}M parameters, {dtype}")
    return decoder.to(dtype), theirs.eval().to(dtype)


def long_tailed(count: int) -> list[int]:
    """Return output lengths whose mean is far below their longest."""
    drawn = np.random.default_rng(0).lognormal(np.log(48), 1.0, count)
    return [int(n) for n in np.clip(drawn.round(), 8, 512)]


def ours(engine: Engine, prompts: torch.Tensor, lengths: list[int]) -> None:
    requests = [
        Request(tuple(p), Sampling(max_tokens=n))
        for p, n in zip(prompts.tolist(), lengths, strict=True)
    ]
    num_tokens = sum(1 for _ in engine.generate(requests))
    assert num_tokens == sum(lengths)


@torch.inference_mode()
def transformers(model: Any, prompts: torch.Tensor, lengths: list[int]) -> None:
    for at in range(0, len(prompts), BATCH):
        batch = prompts[at : at + BATCH]
        model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=max(lengths[at : at + BATCH]),
            do_sample=False,
        )


def seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation against transformers.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    decoder, theirs = models(getattr(torch, options.dtype))
    tail = long_tailed(3 * BATCH)
    cases = {
        "batch 1": [OUTPUT],
        "batch 8": [OUTPUT] * 8,
        "batch 32": [OUTPUT] * 32,
        f"{len(tail)} long-tailed, 32 at a time (8 to {max(tail)})": tail,
    }
    engine = Engine(decoder, max_batch=BATCH, reuses_prefixes=False)
    results = []
    for name, lengths in cases.items():
        shape = (len(lengths), PROMPT)
        prompts = torch.randint(4096, shape, generator=torch.Generator().manual_seed(1))
        run = {
            "ours": lambda p=prompts, n=lengths: ours(engine, p, n),
            "transformers": lambda p=prompts, n=lengths: transformers(theirs, p, n),
            "ours again": lambda p=prompts, n=lengths: ours(engine, p, n),
        }
        for function in run.values():
            function()
        rounds = [{key: seconds(f) for key, f in run.items()} for _ in range(options.rounds)]
        ratios = [r["transformers"] / r["ours"] for r in rounds]
        floor = statistics.median(abs(r["ours"] / r["ours again"] - 1) for r in rounds)
        ours_s = statistics.median(r["ours"] for r in rounds)
        results.append(
            {
                "case": name,
                "ratio": statistics.median(ratios),
                "spread": [min(ratios), max(ratios)],
                "noise_floor": floor,
                "tokens_per_s": sum(lengths) / ours_s,
            }
        )
        print(
            f"{name}: {results[-1]['ratio']:.2f}x transformers "
            f"({min(ratios):.2f} to {max(ratios):.2f}, noise {floor:.1%}), "
            f"{results[-1]['tokens_per_s']:.0f} tokens/s",
            flush=True,
        )
    print(json.dumps({"hardware": describe_hardware("cpu"), "results": results}))


if __name__ == "__main__":
    main()
