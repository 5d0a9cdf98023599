"""A child's speed over its parent's in three engines, in one run: ours, llama.cpp, vLLM on the CPU.

    python benchmarks/speed_ratio.py         (after `make engines`; a peer not there is skipped)
    python benchmarks/speed_ratio.py --parent PARENT --child CHILD

Both are served by every engine in turn, round after round: 32 tokens in, 128 out, greedy, float32;
one request at a time in all three, and --batch at once in ours and vLLM. The ratio is the median
over rounds, the noise floor how far two runs of the parent differ; the bar is 15 % from ours. By
default parent and child are of random weights: times do not depend on them.
"""

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from generation_peers import LLAMA_CPP, OUTPUT, PROMPT, free_port, requests, seconds_of, server

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import world
from fretsaw.engine.engine import Engine
from fretsaw.engine.timing import describe_hardware
from fretsaw.export.export import export
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params

ROOT = Path(__file__).parents[1]
# What every engine takes as it is: layer 0 keeps its attention, no layer lacks an FFN.
CHILD = [
    *[("gqa8", "ffn1536"), ("gqa8", "ffn768"), ("gqa2", "ffn768"), ("attn_none", "ffn1536")],
    *[("gqa4", "ffn1280"), ("attn_none", "ffn512"), ("gqa2", "ffn1536"), ("attn_none", "ffn256")],
    *[("gqa8", "ffn256"), ("attn_none", "ffn768"), ("gqa1", "ffn1024"), ("gqa8", "ffn1536")],
]
Run = Callable[[], float]  # seconds of one generation


def write_models(work: Path) -> tuple[Path, Path]:
    """Write a parent of 12 layers and a child of it, with a tokenizer of their own."""
    texts = [world.story_text(world.make_story(seed)) for seed in range(400)]
    tokenizer = Tokenizer.train(texts, 1000)
    parent = ModelConfig.uniform(
        num_hidden_layers=len(CHILD),
        num_key_value_heads=8,
        intermediate_size=1536,
        vocab_size=tokenizer.vocab_size,
        hidden_size=512,
        num_attention_heads=16,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    configs = {"parent": parent, "child": replace(parent, blocks=blocks_from_names(CHILD))}
    for name, config in configs.items():
        decoder = Decoder(config)
        decoder.init_weights(0)
        (work / name).mkdir()
        checkpoint.write(decoder, work / name, tokenizer=tokenizer)
        print(f"{name}: {num_params(config) / 1e6:.1f}M parameters, float32")
    return work / "parent", work / "child"


# --- engines --------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(path: Path, options: argparse.Namespace) -> Iterator[dict[int, Run]]:
    decoder = checkpoint.load(path)
    engine = Engine(decoder, max_batch=options.batch, reuses_prefixes=False)
    vocab = decoder.config.vocab_size
    yield {n: functools.partial(seconds_of, engine, requests(n, vocab)) for n in (1, options.batch)}


@contextlib.contextmanager
def llama_cpp(path: Path, options: argparse.Namespace) -> Iterator[dict[int, Run]]:
    file = path.parent / f"{path.name}.gguf"
    export(path, file, target="llama.cpp", dtype="fp32")
    python = options.environments / ".venv-llamacpp/bin/python"
    sizes = [str(options.threads), str(PROMPT), str(OUTPUT)]
    with subprocess.Popen(
        [python, "-c", LLAMA_CPP, file, *sizes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def once() -> float:
            print(file=stdin, flush=True)
            return float(stdout.readline())

        yield {1: once}
        stdin.close()


@contextlib.contextmanager
def vllm(path: Path, options: argparse.Namespace) -> Iterator[dict[int, Run]]:
    folder, port = path.parent / f"{path.name}-vllm", free_port()
    export(path, folder, target="vllm", dtype="fp32")
    python = options.environments / ".venv-vllm/bin/python"
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "512"]
    command += ["--max-num-seqs", str(options.batch), "--no-enable-prefix-caching"]
    command += ["--trust-remote-code", *(["--enforce-eager"] if options.eager else [])]
    variables = {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    vocab = checkpoint.read_config(path).vocab_size
    with server(command, variables, port) as engine:
        yield {
            n: functools.partial(seconds_of, engine, requests(n, vocab)) for n in (1, options.batch)
        }


ENGINES = {"ours": ours, "llama.cpp": llama_cpp, "vLLM": vllm}
ENVIRONMENTS = {"llama.cpp": ".venv-llamacpp", "vLLM": ".venv-vllm"}


# --- the comparison -------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="A child's speed-up in three engines.")
    parser.add_argument("--parent", type=Path)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation")
    parser.add_argument("--environments", type=Path, default=ROOT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engines = dict(ENGINES)
    for name, environment in ENVIRONMENTS.items():
        if not (options.environments / environment / "bin/python").exists():
            print(f"{name}: skipped, no {environment}; `make engines` builds it")
            del engines[name]
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        models = (options.parent, options.child)
        if None in models:
            models = write_models(Path(work))
        runs = {
            (engine, batch, model): run
            for engine, start in engines.items()
            for model, path in zip(("parent", "child"), linked(models, Path(work)), strict=True)
            for batch, run in stack.enter_context(start(path, options)).items()
        }
        runs |= {(e, b, "again"): run for (e, b, model), run in runs.items() if model == "parent"}
        for run in runs.values():
            run()
        rounds = []
        for i in range(options.rounds):
            rounds.append({key: run() for key, run in runs.items()})
            print(f"round {i + 1}/{options.rounds}", file=sys.stderr, flush=True)
    print(json.dumps({"hardware": describe_hardware("cpu"), "results": told(rounds)}))


def linked(models: tuple[Path, Path], work: Path) -> list[Path]:
    """Return the models by names under `work`, so that exports come to lie beside them there."""
    paths = []
    for name, path in zip(("parent", "child"), models, strict=True):
        if path.parent != work:
            (work / name).symlink_to(path.absolute())
        paths.append(work / name)
    return paths


def told(rounds: list[dict[tuple[str, int, str], float]]) -> list[dict]:
    """Print each engine's ratio beside ours; return them all."""
    results, own = [], {}
    for engine, batch in dict.fromkeys(key[:2] for key in rounds[0]):
        of = {m: [r[engine, batch, m] for r in rounds] for m in ("parent", "child", "again")}
        ratios = [p / c for p, c in zip(of["parent"], of["child"], strict=True)]
        floor = statistics.median(
            abs(a / p - 1) for a, p in zip(of["again"], of["parent"], strict=True)
        )
        ratio = statistics.median(ratios)
        apart = ratio / own.setdefault(batch, ratio) - 1
        rates = {m: batch * OUTPUT / statistics.median(of[m]) for m in ("parent", "child")}
        results.append(
            {
                **{"engine": engine, "batch": batch, "ratio": ratio, "noise_floor": floor},
                **{"spread": [min(ratios), max(ratios)], "tokens_per_s": rates},
            }
        )
        verdict = "" if engine == "ours" else f"; {apart:+.1%} from ours, bar 15 %: "
        verdict += "" if engine == "ours" else "met" if abs(apart) <= 0.15 else "MISSED"
        print(
            f"{engine}, batch {batch}: child {ratio:.2f}x its parent ({min(ratios):.2f} to "
            f"{max(ratios):.2f}, noise {floor:.1%}), {rates['child']:.0f} and "
            f"{rates['parent']:.0f} tokens/s{verdict}",
            flush=True,
        )
    return results


if __name__ == "__main__":
    main()
