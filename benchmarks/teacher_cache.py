"""What a cached teacher loses: children healed from its top k against one healed by the parent.

The parent, child and text are those of optimizer_states.py. All heal on the KL alone and read the
same rows; every child is then judged by the live parent's whole KL on held-out rows.

    python benchmarks/teacher_cache.py [--tokens 40960] [--seeds 3]
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from optimizer_states import LOOP, PLAIN, prepare, stage

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.distill.objective import heldout_figures
from fretsaw.distill.settings import DistillSettings, TeachSettings
from fretsaw.distill.teacher import teach
from fretsaw.distill.train import distill
from fretsaw.stage import artifact
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress

TOP_K = (1, 4, 16, 64)


def cached(root: Path, inputs: dict[str, Path], k: int, tokens: int, seed: int) -> Path:
    """Make a cache, manifest and all."""
    settings = TeachSettings(tokens=tokens, seq_len=64, top_k=k, heldout_tokens=LOOP.heldout_tokens)
    own = {name: inputs[name] for name in ("parent", "corpus")}
    out = root / f"cache {k} {seed}"
    request = artifact.StageRequest.of("teach", settings, own, seed)
    folder = artifact.open_partial(out, request)
    metrics = teach(settings, own, StageRun(folder, seed, "cpu", "fp32", Progress("benchmark")))
    artifact.complete(out, request, metrics, seconds=0, extra={})
    return out


def whole_kl(child: Path, inputs: dict[str, Path]) -> float:
    """Return the held-out KL from the live parent over the whole vocabulary."""
    student, teacher = checkpoint.load(child), checkpoint.load(inputs["parent"])
    rows = loader.first_rows(inputs["corpus"] / "heldout.npy", 64, LOOP.heldout_tokens)
    figures = heldout_figures(student, teacher, torch.from_numpy(rows), 16, "fp32")
    return figures["kl"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=40_960)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loop = replace(LOOP, tokens=arguments.tokens, update=PLAIN, heldout_every=10**6)
    settings = DistillSettings(cosine_weight=0, keep_best=False, train=loop)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = prepare(root)
        vocab = checkpoint.read_config(inputs["parent"]).vocab_size
        print(f"before healing: KL {whole_kl(inputs['child'], inputs):.4f}, vocabulary {vocab}")
        for k in (None, *TOP_K, vocab):
            found = []
            for seed in range(arguments.seeds):
                given = {name: inputs[name] for name in ("child", "corpus")}
                if k is None:
                    given["parent"] = inputs["parent"]
                else:
                    given["teacher"] = cached(root, inputs, k, arguments.tokens, seed)
                    given["parent"] = inputs["parent"]  # only to be recognised by its hash
                run = stage(root / f"healed {k} {seed}", seed)
                distill(settings, given, run)
                found.append(whole_kl(run.folder, inputs))
            name = "live" if k is None else f"k = {k}"
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            print(f"{name:<10} KL {statistics.mean(found):.5f} +- {spread:.5f}", flush=True)


if __name__ == "__main__":
    main()
