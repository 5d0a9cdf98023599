"""Exports in the engines they are for: llama.cpp, vLLM's CPU build, mlx-lm's CPU build.

    python benchmarks/interop.py [--checkpoint CHILD --parent PARENT] [--only llama.cpp]

Every pattern of differing layers (random weights, float32) and a trained child are exported for
each engine, opened in it, and compared with our forward: the largest difference of a
log-probability over all tokens and the whole vocabulary, and how many of the greedy tokens that
follow are ours. For q8_0 and for weights in 8 bits it is at how many tokens the most probable next
one is ours; the latter are compared with our own forward in 8 bits, and the mean difference is
given beside that of the two precisions. Then: the ids that llama.cpp gives to texts, and the
child's decoding speed beside its parent's. An engine whose environment is not there is skipped and
says so (`make engines` builds them).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fretsaw.chat.format import chat_format
from fretsaw.chat.message import Message
from fretsaw.chat.own_format import OwnFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder
from fretsaw.export.asked import WeightPrecision
from fretsaw.export.export import export
from fretsaw.model.decoder import Decoder

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from patterns import PATTERNS, make  # noqa: E402 (the same patterns as the tests')

CHILD, PARENT = ROOT / "runs/tiny/1.5x-decode/distill", ROOT / "runs/tiny/pretrain"
SHAPE = {"hidden_size": 256, "head_dim": 32, "vocab_size": 300, "max_position_embeddings": 256}
NUM_PROMPT, NUM_NEW = 40, 16


@dataclass(frozen=True)
class Column:
    """One way of getting a model into an engine."""

    title: str
    engine: str
    target: str
    dtype: str = "fp32"
    weights: WeightPrecision = "full"


COLUMNS = (
    Column("llama.cpp", "llama.cpp", "llama.cpp"),
    Column("llama.cpp, portable", "llama.cpp", "portable"),
    Column("llama.cpp, q8_0", "llama.cpp", "llama.cpp", "q8_0"),
    Column("vLLM", "vllm", "vllm"),
    Column("vLLM, portable", "vllm", "portable"),
    Column("vLLM, int8", "vllm", "vllm", weights="int8"),
    Column("vLLM, fp8", "vllm", "vllm", weights="fp8"),
    Column("mlx-lm", "mlx", "mlx"),
    Column("mlx-lm, portable", "mlx", "portable"),
)
ENVIRONMENTS = {
    engine: f".venv-{engine.replace('.', '')}" for engine in ("llama.cpp", "vllm", "mlx")
}
LIMITS = ("Unsupported CPU attention configuration",)  # vLLM: heads of fewer than 32 dimensions
ONE_AT_A_TIME = {"llama.cpp"}  # it may abort, and the process with it
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@dataclass
class Model:
    """A checkpoint and what our own forward makes of it."""

    name: str
    path: Path
    ids: list[int]
    logprobs: dict[WeightPrecision, np.ndarray]  # tokens, vocab; by precision of the matrices
    greedy: list[int]
    cells: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def reference(name: str, path: Path) -> Model:
    decoder = folder.load(path)
    decoders: dict[WeightPrecision, Decoder] = {
        "full": decoder,
        "int8": folder.load_served(path, weights="int8"),
        "fp8": folder.load_served(path, weights="fp8"),
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(decoder.config.vocab_size, (1, NUM_PROMPT), generator=generator)
    logprobs: dict[WeightPrecision, np.ndarray] = {
        weights: served(ids)[0].double().log_softmax(-1).numpy()
        for weights, served in decoders.items()
    }
    longer = ids
    for _ in range(NUM_NEW):
        longer = torch.cat((longer, decoder(longer)[:, -1:].argmax(-1)), dim=1)
    return Model(name, path, ids[0].tolist(), logprobs, longer[0, NUM_PROMPT:].tolist())


def python_of(engine: str) -> Path | None:
    path = ROOT / ENVIRONMENTS[engine] / "bin/python"
    return path if path.exists() else None


def ask(engine: str, jobs: dict[str, dict[str, Any]], work: Path) -> dict[str, Any]:
    """Run jobs in an engine's environment; return its answers, or why there is none, by name."""
    paths = {name: work / f"{engine}-{i}.json" for i, name in enumerate(jobs)}
    for name, job in jobs.items():
        paths[name].write_text(json.dumps({"context": 256, "texts": [], **job}))
    batches = [[p] for p in paths.values()] if engine in ONE_AT_A_TIME else [list(paths.values())]
    command = [str(python_of(engine)), str(ROOT / "benchmarks/engines.py"), engine]
    ends = {}
    for batch in batches:
        with (work / f"{engine}.log").open("w") as log:
            environment = {**os.environ, **VARIABLES}
            done = subprocess.run(
                [*command, *map(str, batch)], env=environment, stdout=log, stderr=log
            )
        ends |= dict.fromkeys(batch, done.returncode)
    answers: dict[str, Any] = {}
    for name, path in paths.items():
        if path.with_suffix(".npz").is_file():
            answers[name] = dict(np.load(path.with_suffix(".npz")))
        elif path.with_suffix(".error").is_file():
            answers[name] = path.with_suffix(".error").read_text().splitlines()[0]
        else:
            answers[name] = f"the process ended with {ends[path]}"
        for suffix in (".npz", ".error"):
            path.with_suffix(suffix).unlink(missing_ok=True)
    return answers


# --- logits ---------------------------------------------------------------------------------------


def compare(models: list[Model], column: Column, work: Path) -> tuple[list[str], list[str]]:
    """Fill a column of the table; return what went wrong, and what the engine can't do anyway."""
    jobs, faults, notes = {}, [], []
    for model in models:
        suffix = ".gguf" if column.engine == "llama.cpp" else ""
        precision = f"{column.dtype}-{column.weights}"
        out = work / f"{model.name}-{column.engine}-{column.target}-{precision}{suffix}"
        kind = {"target": column.target, "dtype": column.dtype}
        try:
            export(model.path, out, **kind, weights=column.weights)
        except ValueError as error:
            if "linear" not in str(error):
                raise
            model.cells[column.title] = "refused"
        else:
            jobs[model.name] = {"model": str(out), "ids": model.ids, "num_new": NUM_NEW}
    for name, answer in ask(column.engine, jobs, work).items():
        model = next(model for model in models if model.name == name)
        if isinstance(answer, str):
            is_limit = any(limit in answer for limit in LIMITS)
            model.cells[column.title] = "not supported" if is_limit else "failed"
            (notes if is_limit else faults).append(f"{name} in {column.title}: {answer}")
            continue
        logprobs = answer["logprobs"]
        expected = model.logprobs[column.weights][: len(logprobs)]
        difference = np.abs(logprobs - expected).max()
        is_exact = column.dtype == "fp32" and column.weights == "full"
        if is_exact:
            same = sum(int(a == b) for a, b in zip(answer["greedy"], model.greedy, strict=True))
            agreement = f"{same}/{NUM_NEW}"
        else:  # one other token would change all that follow it
            agrees = logprobs.argmax(-1) == expected.argmax(-1)
            agreement = f"{100 * agrees.mean():.0f} %"
        if column.weights != "full":
            exact = model.logprobs["full"][: len(logprobs)]
            means = [np.abs(one - expected).mean() for one in (logprobs, exact)]
            agreement += f", mean {means[0]:.1e} of {means[1]:.1e}"
        model.cells[column.title] = f"{difference:.1e} {agreement}"
        if is_exact and not difference < 1e-4:
            faults.append(f"{name} in {column.title}: differs by {difference:.1e}")
    return faults, notes


def render(models: list[Model], columns: list[Column]) -> str:
    rows = [["", *(column.title for column in columns)], ["---"] * (len(columns) + 1)]
    rows += [[m.name, *(m.cells.get(c.title, "") for c in columns)] for m in models]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# --- tokenizers -----------------------------------------------------------------------------------


def texts(data: Path, num: int) -> list[str]:
    """Sentences of the test data where it is, and strings no one would write."""
    chooser, found = random.Random(0), []
    for name in ("gsm8k/train.jsonl", "corpora/tinystories_train_prefix.txt"):
        if (data / name).is_file():
            lines = (data / name).read_text(encoding="utf-8").splitlines()
            found += [line for line in chooser.sample(lines, num) if line.strip()]
    alphabet = (
        "abc XYZ 0123456789 \n\t.,;!?'\"-_()éüñß中文字東京русский🙂👩‍🚀\u00a0\u200b\u3000\u0301"
    )
    found += ["".join(chooser.choices(alphabet, k=chooser.randint(1, 60))) for _ in range(num)]
    return found


def compare_tokenizers(models: dict[str, Path], data: Path, work: Path) -> None:
    for name, path in models.items():
        tokenizer, tried = Tokenizer.from_folder(path), texts(data, 300)
        out = work / f"tokenizer-{name}.gguf"
        export(path, out)
        format, asked = chat_format(path, tokenizer), conversations(data)
        job = {"model": str(out), "ids": [1, 2], "num_new": 1, "texts": tried}
        job |= {"conversations": asked} if isinstance(format, OwnFormat) else {}
        answer = ask("llama.cpp", {name: job}, work)[name]
        if isinstance(answer, str):
            print(f"tokenizer of {name}: {answer}")
            continue
        theirs = json.loads(str(answer["text_ids"]))
        pairs = zip(tried, theirs, strict=True)
        wrong = [text for text, ids in pairs if tuple(ids) != tokenizer.text_ids(text)]
        shown = f", first {wrong[0]!r}" if wrong else ""
        print(f"tokenizer of {name}: {len(tried) - len(wrong)}/{len(tried)} texts the same{shown}")
        theirs = json.loads(str(answer["chat_ids"]))
        if format is None or not theirs:
            continue
        wrong = [
            turns
            for turns, ids in zip(asked, theirs, strict=True)
            if tuple(ids)
            != format.prompt_ids([Message(turn["role"], turn["content"]) for turn in turns], "off")
        ]
        print(f"chat template of {name}: {len(asked) - len(wrong)}/{len(asked)} the same")


def conversations(data: Path) -> list[list[dict[str, str]]]:
    """Turns of user and assistant, half of them after a system turn.

    None spells a control token: with us it stays text, elsewhere it becomes one.
    """
    said = [text for text in texts(data, 300) if text.strip() and "<|" not in text]
    chooser, found = random.Random(1), []
    for number in range(200):
        num_turns = 2 * chooser.randint(0, 2) + 1
        roles = [("user", "assistant")[turn % 2] for turn in range(num_turns)]
        turns = [{"role": role, "content": chooser.choice(said)} for role in roles]
        system = [{"role": "system", "content": chooser.choice(said)}] if number % 2 else []
        found.append(system + turns)
    return found


def byte_level_models(data: Path, work: Path) -> dict[str, Path]:
    """Random networks around byte-level BPEs that split texts as ours, SmolLM's and GPT-2's do."""
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    splittings = {
        "ours": None,
        "SmolLM's way": {"type": "Sequence", "pretokenizers": [digits, words]},
        "GPT-2's way": words,
    }
    found = {}
    for name, splitting in splittings.items():
        folder_of = work / f"tokenizer-{len(found)}"
        folder_of.mkdir()
        Tokenizer.train(texts(data, 2000), 1500).save(folder_of)
        path = folder_of / "tokenizer.json"
        raw = json.loads(path.read_text(encoding="utf-8"))
        if splitting is not None:
            raw["pre_tokenizer"] = splitting
        path.write_text(json.dumps(raw), encoding="utf-8")
        found[name] = work / f"model-{len(found)}"
        decoder = make([("gqa4", "ffn256")], hidden_size=64, head_dim=8, vocab_size=1500)
        folder.save(decoder, found[name], like=folder_of)
    return found


def llama_3_model(data: Path, work: Path) -> Path | None:
    """A random network of 2 layers around Llama 3's tokenizer, where that is there."""
    tokenizer = data / "tokenizers/llama3"
    if not tokenizer.is_dir():
        return None
    decoder = make([("gqa4", "ffn256")] * 2, hidden_size=64, head_dim=8, vocab_size=128256)
    folder.save(decoder, work / "llama3", like=tokenizer)
    return work / "llama3"


# --- speed ----------------------------------------------------------------------------------------


def compare_speeds(child: Path, parent: Path, engines: list[str], work: Path) -> None:
    for engine in engines:
        jobs, suffix = {}, ".gguf" if engine == "llama.cpp" else ""
        for name, path in (("child", child), ("parent", parent)):
            out = work / f"speed-{name}-{engine}{suffix}"
            export(path, out, target=engine, dtype="fp32")
            job = {"model": str(out), "ids": list(range(3, 35)), "num_new": 200}
            jobs |= {f"{name} {i}": job for i in range(9)}
        order = [f"{name} {i}" for i in range(9) for name in ("child", "parent")]
        answers = ask(engine, {name: jobs[name] for name in order}, work)
        failed = [answer for answer in answers.values() if isinstance(answer, str)]
        if failed:
            print(f"decoding in {engine}: {failed[0]}")
            continue
        speed = {name: float(answer["tokens_per_s"]) for name, answer in answers.items()}
        ratios = [speed[f"child {i}"] / speed[f"parent {i}"] for i in range(9)]
        medians = [
            statistics.median(speed[f"{n} {i}"] for i in range(9)) for n in ("child", "parent")
        ]
        print(
            f"decoding in {engine}, batch 1, 1 thread: child {medians[0]:,.0f} tokens/s, parent "
            f"{medians[1]:,.0f}, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


# --- all of it ------------------------------------------------------------------------------------


def save_patterns(work: Path) -> dict[str, Path]:
    tokenizer = work / "tokenizer"
    tokenizer.mkdir()
    Tokenizer.train(["Tom has 13 apples and Lily's 4 pens; they're glad! "] * 3, 290).save(
        tokenizer
    )
    saved = {}
    for name, layers in PATTERNS.items():
        decoder: Decoder = make(layers, **SHAPE)
        folder.save(decoder, work / name, like=tokenizer)
        saved[name] = work / name
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--parent", type=Path, default=PARENT)
    parser.add_argument("--only", choices=ENVIRONMENTS)
    parser.add_argument("--words", type=Path, nargs="+", help="the words of these alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ.get("FRETSAW_DATA", ROOT.parent / "shared/data"))
    engines = [options.only] if options.only else list(ENVIRONMENTS)
    for engine in [engine for engine in engines if python_of(engine) is None]:
        print(f"{engine}: skipped, no {ENVIRONMENTS[engine]}; `make engines` builds it")
        engines.remove(engine)
    children = [path for path in options.checkpoint or [CHILD] if path.is_dir()]

    with tempfile.TemporaryDirectory(prefix="fretsaw-interop-") as temporary:
        work = Path(temporary)
        if options.words:
            named = {path.absolute().name: path for path in options.words}
            return compare_tokenizers(named, data, work)
        paths = save_patterns(work)
        paths |= {"/".join(path.absolute().parts[-3:]): path for path in children}
        models = [reference(name.replace("/", "."), path) for name, path in paths.items()]
        columns, faults = [c for c in COLUMNS if c.engine in engines], []
        notes: list[str] = []
        for column in columns:
            wrong, limits = compare(models, column, work)
            faults, notes = faults + wrong, notes + limits
            print(f"{column.title}: done", file=sys.stderr, flush=True)
        print("\n".join([render(models, columns), *notes]))
        if "llama.cpp" in engines:
            tokenizers = byte_level_models(data, work)
            stories, llama_3 = data / "models/stories260K", llama_3_model(data, work)
            tokenizers |= {"stories260K": stories} if stories.is_dir() else {}
            tokenizers |= {"Llama 3": llama_3} if llama_3 else {}
            compare_tokenizers(tokenizers, data, work)
        if children and options.parent.is_dir():
            compare_speeds(children[0], options.parent, engines, work)
        print("\n".join(faults) or "every float32 export is within 1e-4 in every engine")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
