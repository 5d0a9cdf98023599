"""How other engines are asked for logits: what runs inside each one's own environment.

    ENVIRONMENT/bin/python benchmarks/engines.py ENGINE JOB.json ...

A job names a model, a row of token ids, texts and how many tokens to go on with; the answer is
written beside it as .npz: `logprobs` (tokens, vocab), `greedy` (the ids that follow) and
`tokens_per_s` of decoding, for llama.cpp also the ids of the texts and of conversations; or as
.error. Knows nothing of fretsaw.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def chat_ids(model: Any, conversations: Any) -> list[list[int]]:
    """Return the ids of conversations by the chat template that the file carries."""
    if not conversations:
        return []
    from llama_cpp.llama_chat_format import (  # pyright: ignore[reportMissingImports]
        Jinja2ChatFormatter,
    )

    def name(id: int) -> str:
        return model._model.token_get_text(id) if id >= 0 else ""

    template = Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"],
        eos_token=name(model.token_eos()),
        bos_token=name(model.token_bos()),
    )
    prompts = [template(messages=turns).prompt for turns in conversations]
    return [model.tokenize(p.encode(), add_bos=False, special=True) for p in prompts]


def llama_cpp(job: dict[str, Any]) -> dict[str, Any]:
    import llama_cpp  # pyright: ignore[reportMissingImports]

    model = llama_cpp.Llama(
        job["model"],
        n_ctx=job["context"],
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    ids = job["ids"]
    model.eval(ids)
    logprobs = log_softmax(np.array(model.scores[: len(ids)]))
    greedy: list[int] = []
    started = time.perf_counter()
    for _ in range(job["num_new"]):
        greedy.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval([greedy[-1]])
    seconds = time.perf_counter() - started
    # add_bos asks for what the file says belongs there, which may be nothing.
    texts = [model.tokenize(t.encode(), add_bos=True, special=False) for t in job["texts"]]
    return {
        "logprobs": logprobs,
        "greedy": greedy,
        "tokens_per_s": len(greedy) / seconds,
        "text_ids": np.array(json.dumps(texts)),
        "chat_ids": np.array(json.dumps(chat_ids(model, job.get("conversations", ())))),
    }


def mlx(job: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx  # pyright: ignore[reportMissingImports]
    from mlx_lm.models.cache import make_prompt_cache  # pyright: ignore[reportMissingImports]
    from mlx_lm.utils import load_model  # pyright: ignore[reportMissingImports]

    model, _ = load_model(Path(job["model"]))
    cache = make_prompt_cache(model)
    logits: Any = model(mx.array([job["ids"]]), cache=cache)
    logprobs = log_softmax(np.array(logits[0].astype(mx.float32)))
    greedy = []
    started = time.perf_counter()
    for _ in range(job["num_new"]):
        greedy.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([[greedy[-1]]]), cache=cache)
    seconds = time.perf_counter() - started
    return {"logprobs": logprobs, "greedy": greedy, "tokens_per_s": len(greedy) / seconds}


def vllm(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    engine = LLM(
        model=job["model"],
        dtype="float32",
        trust_remote_code=True,
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=job["context"],
        max_num_seqs=2,
        max_logprobs=-1,
        enable_prefix_caching=False,
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=job["num_new"],
        ignore_eos=True,
        prompt_logprobs=-1,
        detokenize=False,
    )
    prompt: Any = {"prompt_token_ids": job["ids"]}
    (answer,) = engine.generate([prompt], sampling, use_tqdm=False)
    rows = answer.prompt_logprobs[1:]  # of every token but the first, given those before it
    logprobs = np.array([[row[i].logprob for i in range(len(row))] for row in rows])
    plain = SamplingParams(
        temperature=0.0, max_tokens=job["num_new"], ignore_eos=True, detokenize=False
    )
    started = time.perf_counter()
    engine.generate([prompt], plain, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {
        "logprobs": logprobs,
        "greedy": list(answer.outputs[0].token_ids),
        "tokens_per_s": job["num_new"] / seconds,
    }


ENGINES = {"llama.cpp": llama_cpp, "vllm": vllm, "mlx": mlx}

if __name__ == "__main__":
    for path in map(Path, sys.argv[2:]):
        try:
            answer = ENGINES[sys.argv[1]](json.loads(path.read_text()))
        except Exception as error:  # a finding, not a fault: it goes into the table
            path.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        else:
            np.savez(path.with_suffix(".npz"), **answer)
