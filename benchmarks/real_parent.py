"""The recipe smollm2 beside other ways to a child of the same speed, healed with equal tokens.

    fretsaw run smollm2 --fast --arg checkpoint=smollm2 --arg text=a.txt --out runs/smollm2
    python benchmarks/real_parent.py runs/smollm2 --checkpoint smollm2 --fast \\
        --text wikitext-2/test.txt --task "svamp:file=svamp/test.jsonl"

Takes the run's corpus, ranking, scores and costs. For its first target: the recipe's own child, the
same without repair, uniform shapes, depth by the same scores, and most parameters; each healed on
the recipe's tokens. All are evaluated on the run's held-out text, on other text, and on tasks, and
so is the parent. Finished parts are kept, so the same command goes on.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fretsaw.corpus.settings import CorpusSettings
from fretsaw.eval.settings import EvalSettings
from fretsaw.pipeline.kinds import STAGES
from fretsaw.pipeline.recipe import find_recipe, load_recipe
from fretsaw.stage.artifact import StageRequest
from fretsaw.stage.execute import execute
from fretsaw.stage.text_table import aligned
from fretsaw.tasks.task import split_files

CHILDREN = ("recipe", "no repair", "uniform", "depth", "max_params")  # but for two, methods
OTHER_TOKENS = 32_768  # of the other text


def make(kind: str, settings: Any, inputs: dict[str, Path], out: Path) -> Path:
    """Run a stage unless its result is there; return its folder."""
    request = StageRequest.of(kind, settings, inputs, 0)
    out.parent.mkdir(parents=True, exist_ok=True)
    execute(STAGES[kind].load(), request, settings, out, device="cpu", dtype="fp32")
    return out


def child(name: str, run: Path, parent: Path, stages: dict[str, Any], root: Path) -> Path:
    """Return a healed child of the run's first target, made another way."""
    target = next(at.partition("/")[0] for at in stages if at.endswith("/search"))
    if name == "recipe":
        return run / target / "distill"
    search, assemble, distill = (
        stages[f"{target}/{step}"].settings for step in ("search", "assemble", "distill")
    )
    if name in ("uniform", "depth", "max_params"):
        search = replace(search, method=name)
    folder = root / name.replace(" ", "-")
    found = make(
        "search", search, {"scores": run / "score", "costs": run / "cost"}, folder / "search"
    )
    text = {"parent": parent, "corpus": run / "corpus"}
    assembled = make(
        "assemble",
        replace(assemble, repair=name != "no repair"),
        {**text, "ranking": run / "rank", "search": found},
        folder / "assemble",
    )
    return make("distill", distill, {**text, "child": assembled}, folder / "distill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the parent")
    parser.add_argument("--text", type=Path, help="text that no stage has read")
    parser.add_argument("--task", default="", help="as `fretsaw eval` takes them")
    parser.add_argument("--limit", type=int, default=100, help="problems of each task")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--fast", action="store_true", help="as the run was made")
    parser.add_argument("--children", nargs="*", default=CHILDREN, choices=CHILDREN)
    options = parser.parse_args()
    arguments = {"checkpoint": str(options.checkpoint), "text": "", "fast": options.fast}
    stages = {s.name: s for s in load_recipe(find_recipe("smollm2"), arguments)}
    root = options.run / "others"
    corpora = {"held-out": options.run / "corpus"}
    if options.text:
        only = CorpusSettings(source="files", max_tokens=4096, heldout_tokens=OTHER_TOKENS)
        read = {"data": options.text, "parent": options.checkpoint}
        corpora[options.text.name] = make("corpus", only, read, root / "text")
    task, files = split_files(options.task)
    problems = {f"problems{i or ''}": file for i, file in enumerate(files)}
    rows = []
    for name in ("parent", *options.children):
        started = time.monotonic()
        is_parent = name == "parent"
        model = options.checkpoint if is_parent else child(
            name, options.run, options.checkpoint, stages, root
        )  # fmt: skip
        row = {"child": name}
        for what, corpus in corpora.items():
            settings = EvalSettings(tokens=OTHER_TOKENS)
            inputs = {"model": model, "parent": options.checkpoint, "corpus": corpus}
            folder = root / f"eval-{name.replace(' ', '-')}-{what}"
            made = make("eval", settings, inputs, folder)
            results = json.loads((made / "results.json").read_text())
            row[f"{what}: KL"] = f"{results['kl']:.3f}"
            row[f"{what}: perplexity"] = f"{results['child_perplexity']:.2f}"
        if task:
            settings = EvalSettings(
                task=task, limit=options.limit, max_new_tokens=options.max_new_tokens
            )
            folder = root / f"tasks-{name.replace(' ', '-')}"
            made = make("eval", settings, {"model": model, **problems}, folder)
            for one, figures in json.loads((made / "results.json").read_text())["tasks"].items():
                own = next(iter(figures["child"].values()))
                low, high = own["interval"]
                row[one] = f"{own['accuracy']:.0%} ({low:.0%} to {high:.0%})"
        rows.append(row)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        print("\n".join(aligned(rows)), flush=True)


if __name__ == "__main__":
    main()
