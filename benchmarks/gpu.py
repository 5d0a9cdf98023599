"""What an accelerator changes: the path on generated data; an 8B; the published shapes, shortened.

    make gpu                                        (under 9 minutes on an H200)
    python benchmarks/gpu.py --device cpu --small   (the same code, tried anywhere)

No network and no files: models are random, or trained here. Prints a JSON object a part, as it
ends. A part that fails says why, and the others go on; then the exit code is 1.
"""

import argparse
import json
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request as EngineRequest
from fretsaw.engine.timing import DecodeLoad, time_decode, time_prefill
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.quantised import everywhere, quantised
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import find_recipe, load_recipe, published_of
from fretsaw.pipeline.walk import resolve_inputs
from fretsaw.puzzle.library.replay import Replay, subblock
from fretsaw.puzzle.library.runs import find_runs
from fretsaw.puzzle.library.slices import build_block
from fretsaw.stage.artifact import StageRequest
from fretsaw.stage.execute import Interrupted, execute

LLAMA_8B = ModelConfig.uniform(
    num_hidden_layers=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
    hidden_size=4096,
    num_attention_heads=32,
    head_dim=128,
    rope_theta=500_000.0,
)


def whole_path(device: str, dtype: str) -> dict[str, Any]:
    """Run the tiny recipe, fast, in this process; return the child's speed and what it kept."""
    stages = load_recipe(find_recipe("tiny"), {"fast": True})
    with tempfile.TemporaryDirectory() as name:
        out, started = Path(name), time.perf_counter()
        for stage in stages:
            if stage.kind == "report":
                continue
            inputs = resolve_inputs(stage, stages, out)
            request = StageRequest.of(stage.kind, stage.settings, inputs, seed=0)
            (out / stage.name).parent.mkdir(parents=True, exist_ok=True)
            function = STAGES[stage.kind].load()
            execute(function, request, stage.settings, out / stage.name, device=device, dtype=dtype)
        at = out / "1.5x-decode"
        speed = json.loads((at / "bench" / "speed.json").read_text())
        figures = json.loads((at / "eval" / "results.json").read_text())
    return {
        "seconds": time.perf_counter() - started,
        "decode": speed["decode"],
        "prefill": speed["prefill"],
        "kl": figures["kl"],
        "kept": next(iter(figures["tasks"].values()))["kept"],
    }


def now(device: str) -> float:
    """Return the time at which all that was launched is done, in seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def scoring(config: ModelConfig, device: str, dtype: torch.dtype, rows: int, seq: int) -> dict:
    """Return the seconds a candidate takes by frontier replay, over a spread of layers."""
    with torch.device(device):
        torch.set_default_dtype(dtype)
        parent = Decoder(config).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    windows = torch.randint(config.vocab_size, (rows, seq + 1), device=device)
    started = now(device)
    replay = Replay(parent, windows, 4)
    target_s = now(device) - started
    seconds, half = [], config.blocks[0].intermediate_size // 2
    for i, block in enumerate(parent.model.layers):
        assert isinstance(block, Block)
        replay.frontier.walk()
        if i % max(1, config.num_hidden_layers // 4) == 0:
            names = (config.blocks[i].attention_name, f"ffn{half}")
            narrow = build_block(block, config, BlockConfig.from_names(*names), i)
            started = now(device)
            states = replay.frontier.after([subblock(narrow, "ffn")])
            replay.figures(states, replay.frontier.at + 1).kl.sum().item()
            seconds.append(now(device) - started)
        replay.frontier.walk()
    return {
        "tokens": rows * seq,
        "target_s": target_s,
        "seconds_a_candidate": seconds,
        "mean_s": sum(seconds) / len(seconds),
    }


def generation(
    config: ModelConfig, device: str, dtype: torch.dtype, rows: int, length: int
) -> dict[str, Any]:
    """Decode with launches, with recorded graphs, and with FP8 matrices on top.

    Graphs must give the launched tokens but for ties; FP8 reports how far its log-probabilities
    are from the exact ones.
    """
    with torch.device(device):
        torch.set_default_dtype(dtype)
        decoder = Decoder(config).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    prompts = [
        tuple((7 * row + 13 * at) % config.vocab_size for at in range(64)) for row in range(rows)
    ]
    requests = [EngineRequest(prompt, Sampling(max_tokens=length)) for prompt in prompts]
    kinds: dict[str, dict[str, bool]] = {
        "launched": {},
        "graphs": {"cuda_graphs": True},
        "graphs, fp8": {"cuda_graphs": True, "fp8": True},
    }
    texts, exact, result = {}, [0.0], {}
    for name, options in kinds.items():
        engine = Engine(decoder, max_batch=rows, reuses_prefixes=False, **options)
        for _ in engine.generate(requests):  # warms up, and records the sizes it meets
            pass
        before = replace(engine.stats())
        texts[name] = [event.token_id for event in engine.generate(requests)]
        stats = engine.stats()
        seconds = stats.decode_s - before.decode_s
        logprobs = engine.logprobs(prompts[0] * 4)
        exact = logprobs if name == "launched" else exact
        result[name] = {
            "decode_tokens_per_s": (stats.decode_tokens - before.decode_tokens) / seconds,
            "same_tokens": sum(a == b for a, b in zip(texts[name], texts["launched"], strict=True))
            / len(texts[name]),
            "logprob_error": max(abs(a - b) for a, b in zip(logprobs, exact, strict=True)),
        }
        del engine
    return result


def short_stacks(small: bool) -> dict[str, dict[str, ModelConfig]]:
    """Return the published shapes with true widths and few layers, by model: parent and children.

    Of Super every tenth layer. Of Ultra the last four FFNs of its last run after one attention,
    apart and fused, and four of the parent's layers.
    """
    found = {}
    for recipe in ("ln_super", "ln_ultra"):
        models = published_of(recipe).models
        if recipe == "ln_super":
            layers = range(5, 80, 10)
            chosen = {name: [config.blocks[i] for i in layers] for name, config in models.items()}
        else:
            unfused = models["unfused"].blocks
            run = next(run for run in reversed(find_runs(unfused)) if len(run) > 4)[-4:]
            widths = [unfused[i].intermediate_size for i in run]
            first = replace(models["parent"].blocks[0], intermediate_size=widths[0])
            apart = [first, *(replace(unfused[run[-1]], intermediate_size=w) for w in widths[1:])]
            fused = [replace(first, intermediate_size=sum(widths))]
            chosen = {"parent": [*models["parent"].blocks[:4]], "unfused": apart, "fused": fused}
        for name, blocks in chosen.items():
            config = replace(models["parent"], blocks=tuple(blocks))
            found.setdefault(recipe, {})[name] = shrunk(config) if small else config
    return found


def shrunk(config: ModelConfig) -> ModelConfig:
    """Return the shapes at a 64th of the width, to try the script."""
    blocks = tuple(
        replace(b, intermediate_size=b.intermediate_size // 64) if b.ffn == "swiglu" else b
        for b in config.blocks
    )
    heads = config.num_attention_heads
    return replace(config, blocks=blocks, hidden_size=2 * heads, head_dim=2, vocab_size=1000)


@torch.inference_mode()
def published_shapes(device: str, dtype: torch.dtype, small: bool) -> dict[str, Any]:
    """Time parents against children, apart and fused, in bf16 and FP8, at batch 1 and 64."""
    loads = {batch: DecodeLoad(batch, 128, 32) for batch in (1, 64)}
    result: dict[str, Any] = {}
    for recipe, stacks in short_stacks(small).items():
        for name, config in stacks.items():
            with torch.device(device):
                torch.set_default_dtype(dtype)
                decoder = Decoder(config).requires_grad_(False)
                torch.set_default_dtype(torch.float32)
            for precision in ("full", "fp8"):
                served = quantised(decoder, everywhere(config, precision))
                for batch, load in loads.items():
                    result[f"{recipe} {name} {precision} batch {batch}"] = {
                        "decode_ms": time_decode(served, load),
                        "prefill_ms": time_prefill(served, load),
                    }
                del served
            del decoder
    ratios = {
        f"{key} over parent": result[" ".join([recipe, "parent", *rest])]["decode_ms"]
        / times["decode_ms"]
        for key, times in result.items()
        for recipe, name, *rest in [key.split()]
        if name != "parent"
    }
    return {"times": result, "decode_speedup": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small shape, to try the script")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        return print("skipped: no accelerator here (--device cpu --small tries the script)")
    config, rows, seq, dtype = LLAMA_8B, 32, 2048, torch.bfloat16
    if options.small:
        small = {"vocab_size": 1000, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
        block = BlockConfig.from_names("gqa2", "ffn256")
        config = replace(LLAMA_8B, blocks=(block,) * 4, **small)
        rows, seq, dtype = 8, 64, torch.float32
    device, length = options.device, 8 if options.small else 128
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(json.dumps({"device": name, "torch": torch.__version__}))
    parts = {
        "scoring": lambda: scoring(config, device, dtype, rows, seq),
        "generation": lambda: generation(config, device, dtype, rows, length),
        "published shapes": lambda: published_shapes(device, dtype, options.small),
        "tiny": lambda: whole_path(device, "bf16" if device == "cuda" else "fp32"),
    }
    failed = []
    for part, measure in parts.items():
        started = now(device)
        try:
            found = measure()
        except Interrupted:
            raise
        except Exception:  # what the device does not do is a finding too
            found = {"failed": traceback.format_exc()}
            failed.append(part)
        print(json.dumps({part: found, "took_s": now(device) - started}, indent=2), flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
