"""The engine against llama.cpp at batch 1 and vLLM at 32, and rollouts at a vLLM server.

    python benchmarks/generation_peers.py        (after `make engines`; a peer not there is skipped)

One random 11M-parameter Llama, float32, greedy, nothing ends early. llama.cpp reads our F32 export
and decodes in its own process, in turn with ours. vLLM's CPU build and `fretsaw serve` are asked
over HTTP by the same client, 32 requests at once; what vLLM says is compared with our engine.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import world
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request
from fretsaw.export.export import export
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.size import num_params
from fretsaw.rollout.remote import RemoteSampler
from fretsaw.rollout.sample import sample_groups

ROOT = Path(__file__).parents[1]
PROMPT, OUTPUT, BATCH = 32, 128, 32
LLAMA_CPP = """
import sys, time
import numpy as np, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False,
    n_threads_batch=int(sys.argv[2]), type_k=0, type_v=0, flash_attn=False, logits_all=False)
ids = [1 + (7 * i) % 500 for i in range(int(sys.argv[3]))]
for line in sys.stdin:
    model.reset()
    started = time.perf_counter()
    model.eval(ids)
    for _ in range(int(sys.argv[4]) - 1):
        model.eval([int(np.argmax(model._ctx.get_logits()[: model.n_vocab()]))])
    print(time.perf_counter() - started, flush=True)
"""


def write_model(out: Path) -> Decoder:
    """Write a plain Llama with a tokenizer of its own."""
    texts = [world.story_text(world.make_story(seed)) for seed in range(400)]
    tokenizer = Tokenizer.train(texts, 1000)
    config = ModelConfig.uniform(
        num_hidden_layers=8,
        num_key_value_heads=5,
        intermediate_size=1024,
        vocab_size=tokenizer.vocab_size,
        hidden_size=320,
        num_attention_heads=10,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    decoder = Decoder(config)
    decoder.init_weights(0)
    out.mkdir()
    checkpoint.write(decoder, out, tokenizer=tokenizer)
    print(f"{num_params(config) / 1e6:.1f}M parameters, float32")
    return decoder


def requests(count: int, vocab_size: int) -> list[Request]:
    return [
        Request(
            tuple(1 + (7 * at + 31 * row) % (vocab_size // 2) for at in range(PROMPT)),
            Sampling(max_tokens=OUTPUT),
        )
        for row in range(count)
    ]


def seconds_of(engine: Engine | RemoteSampler, asked: list[Request]) -> float:
    started = time.perf_counter()
    assert sum(1 for _ in engine.generate(asked)) == len(asked) * OUTPUT
    return time.perf_counter() - started


def told(name: str, ours: list[float], theirs: list[float], tokens: int) -> None:
    ratios = sorted(t / o for o, t in zip(ours, theirs, strict=True))
    print(
        f"{name}: ours {statistics.median(ratios):.2f}x as fast ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}); {tokens / statistics.median(ours):.0f} against "
        f"{tokens / statistics.median(theirs):.0f} tokens/s",
        flush=True,
    )


def against_llama_cpp(folder: Path, decoder: Decoder, python: Path, options) -> None:
    file = folder.with_suffix(".gguf")
    export(folder, file, target="llama.cpp", dtype="fp32")
    arguments = [str(file), str(options.threads), str(PROMPT), str(OUTPUT)]
    with subprocess.Popen(
        [python, "-c", LLAMA_CPP, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def theirs() -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            print(file=process.stdin, flush=True)
            return float(process.stdout.readline())

        engine = Engine(decoder, reuses_prefixes=False)
        asked = requests(1, decoder.config.vocab_size)
        seconds_of(engine, asked)
        theirs()
        rounds = [(seconds_of(engine, asked), theirs()) for _ in range(options.rounds)]
        process.stdin.close()
    told("llama.cpp, batch 1", [o for o, _ in rounds], [t for _, t in rounds], OUTPUT)


@contextlib.contextmanager
def server(command: list[str], environment: dict[str, str], port: int) -> Iterator[RemoteSampler]:
    """Start a server and wait until it answers."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            with contextlib.suppress(ValueError):
                yield RemoteSampler(f"http://127.0.0.1:{port}", timeout_s=300)
                return
            time.sleep(1)
        raise TimeoutError(f"{command}: no answer within 300 s")
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def against_vllm(folder: Path, decoder: Decoder, python: Path, options) -> None:
    ports = free_port(), free_port()
    theirs = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    theirs += ["--port", str(ports[0]), "--dtype", "float32", "--max-model-len", "512"]
    theirs += ["--max-num-seqs", str(BATCH), "--no-enable-prefix-caching"]
    variables = {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    ours = [sys.executable, "-m", "fretsaw", "serve", str(folder), "--port", str(ports[1])]
    ours += ["--max-batch", str(BATCH)]
    with server(theirs, variables, ports[0]) as vllm, server(ours, {}, ports[1]) as fretsaw:
        check_samples(vllm, decoder)
        asked = requests(BATCH, decoder.config.vocab_size)
        for engine in (fretsaw, vllm):
            seconds_of(engine, asked)
        rounds = [
            (seconds_of(fretsaw, asked), seconds_of(vllm, asked)) for _ in range(options.rounds)
        ]
    told("vLLM, 32 at once", [o for o, _ in rounds], [t for _, t in rounds], BATCH * OUTPUT)


def check_samples(vllm: RemoteSampler, decoder: Decoder) -> None:
    """Compare greedy rollouts at vLLM with the embedded engine's."""
    prompts = [request.token_ids for request in requests(8, decoder.config.vocab_size)]
    options = {
        "group_size": 1,
        "max_tokens": 24,
        "temperature": 0.0,
        "stop_token_ids": (),
        "seed": 0,
    }
    there, here = (sample_groups(e, prompts, **options) for e in (vllm, Engine(decoder)))
    num_equal, error = 0, 0.0
    for a, b in zip(there, here, strict=True):
        num_equal += a.token_ids == b.token_ids
        same = [x == y for x, y in zip(a.token_ids, b.token_ids, strict=True)]
        until = same.index(False) if False in same else len(same)
        pairs = zip(a.logprobs[:until], b.logprobs[:until], strict=True)
        error = max([error, *(abs(x - y) for x, y in pairs)])
    print(
        f"rollouts at vLLM: {num_equal} of {len(here)} texts equal, log-probabilities {error:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation against llama.cpp and vLLM.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=ROOT)
    options = parser.parse_args()
    peers = {".venv-llamacpp": against_llama_cpp, ".venv-vllm": against_vllm}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        decoder = write_model(folder)
        for environment, compare in peers.items():
            python = options.environments / environment / "bin/python"
            if python.exists():
                compare(folder, decoder, python, options)
            else:
                print(f"{environment}: skipped, it is not there; `make engines` builds it")


if __name__ == "__main__":
    main()
