"""What reinforcement adds to a tuned model, against more tuning for the same generated tokens.

    python benchmarks/reason.py --model runs/tiny/1.5x-decode/sft --seeds 3

From one tuned checkpoint, for every seed: `fretsaw rl`; rejection sampling (as many tokens sampled
from the tuned model to the same problems, the right answers kept and tuned on, at the tuning's own
rates and at a quarter of them); and continued tuning on as many tokens of worked answers. Each is
then graded on problems whose chains of arithmetic none has seen, sliced by what the tuning never
showed. Which is ahead is printed, whichever it is.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from fretsaw.chat.format import require_chat_format
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.eval.intervals import bootstrap
from fretsaw.pipeline.recipe import find_recipe, load_recipe
from fretsaw.rl.settings import RlSettings
from fretsaw.rl.train import reinforce
from fretsaw.rollout.rows import Row, read_rows
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import tune
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import Progress, say
from fretsaw.stage.whole import write_json
from fretsaw.tasks.answers import answer
from fretsaw.tasks.prompt import chat_prompt
from fretsaw.tasks.task import load_problems
from fretsaw.training.settings import UpdateSettings

SLICES = {
    "as tuned": "word_problems:steps=1-5,max_value=20",
    "other words": "word_problems:steps=1-4,max_value=20,phrasing=heldout",
    "larger numbers": "word_problems:steps=2-4",
    "a step more": "word_problems:steps=5,phrasing=both",  # than RL's problems have
    "six steps": "word_problems:steps=6",  # more than any text or conversation has
    "RL's problems": "",
}


BASELINES = ("rejection", "gentle", "continued")


def gentle(update: UpdateSettings) -> UpdateSettings:
    """Return a quarter of the rates: what a tuned model bears better."""
    return replace(
        update,
        learning_rate=update.learning_rate / 4,
        muon_learning_rate=update.muon_learning_rate / 4,
    )


def stage_run(folder: Path, seed: int) -> StageRun:
    folder.mkdir(parents=True, exist_ok=True)
    return StageRun(folder, seed, "cpu", "fp32", Progress(folder.name, folder))


def grades(folder: Path, specs: Sequence[str], num_problems: int) -> dict[str, list[float]]:
    """Return the reward of greedy answers with reasoning on, by task."""
    model, tokenizer = checkpoint.load(folder), Tokenizer.from_folder(folder)
    format = require_chat_format(folder, tokenizer)
    engine, found = Engine(model, max_batch=256), {}
    for spec in specs:
        problems = load_problems(spec, num_problems, seed=1234)
        prompts = [chat_prompt(format, problem, "on") for problem in problems]
        rows = answer(engine, tokenizer, prompts, Sampling(max_tokens=120))
        found[spec] = [row.reward for row in rows]
    return found


def sample(model: Path, settings: RlSettings, num_tokens: int, seed: int) -> list[Row]:
    """Sample from the tuned model to RL's problems until as many tokens are generated."""
    decoder, tokenizer = checkpoint.load(model), Tokenizer.from_folder(model)
    format = require_chat_format(model, tokenizer)
    engine = Engine(decoder, max_batch=settings.max_batch)
    problems = load_problems(settings.task, settings.num_problems, seed=seed, split="train")
    rows: list[Row] = []
    for step in range(10_000):
        if sum(len(row.token_ids) for row in rows) >= num_tokens:
            break
        per_step = settings.prompts_per_rollout
        drawn = loader.order(len(problems), per_step, seed=seed, step=step)
        rows += answer(
            engine,
            tokenizer,
            [
                chat_prompt(format, problems[i], "on" if place < settings.num_on else "off")
                for place, i in enumerate(drawn)
            ],
            replace(settings.sampling, seed=seed * 7919 + step),
            group_size=settings.group_size,
        )
    return rows


def write_right_answers(rows: Sequence[Row], path: Path) -> int:
    """Write the right answers, each once, as conversations; return how many."""
    kept = {(row.question, row.mode, row.completion) for row in rows if row.reward == 1}
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": completion},
                ],
                "mode": mode,
            }
        )
        for question, mode, completion in sorted(kept)
    ]
    path.write_text("\n".join(lines) + "\n")
    return len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description="RL against more tuning")
    parser.add_argument("--model", type=Path, required=True, help="a tuned checkpoint")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=400, help="of every slice")
    parser.add_argument("--rollouts", type=int, help="other than the recipe's")
    parser.add_argument("--out", type=Path, help="keep everything here; goes on where it stopped")
    options = parser.parse_args()
    stages = {type(s.settings): s.settings for s in load_recipe(find_recipe("tiny"), {})}
    rl, sft = stages[RlSettings], stages[SftSettings]
    assert isinstance(rl, RlSettings)
    assert isinstance(sft, SftSettings)
    if options.rollouts:
        rl = replace(rl, num_rollouts=options.rollouts)
    SLICES["RL's problems"] = rl.task
    out = options.out or Path(tempfile.mkdtemp())
    specs = list(SLICES.values())
    results = {"tuned": [grades(options.model, specs, options.problems)]}
    for seed in range(1, options.seeds + 1):
        folders = {name: out / f"{name}-{seed}" for name in ("rl", *BASELINES)}
        if not (folders["rl"] / "config.json").is_file():
            reinforce(rl, {"model": options.model}, stage_run(folders["rl"], seed))
        rollouts = sorted((folders["rl"] / "rollouts").glob("*.parquet"))
        generated = sum(len(row.token_ids) for path in rollouts for row in read_rows(path))
        path = out / f"right-{seed}.jsonl"
        if not path.is_file():
            rows = sample(options.model, rl, generated, seed)
            kept = write_right_answers(rows, path)
            say(f"rejection sampling: {kept} different right answers of {len(rows)}")
        for name, update in (("rejection", sft.update), ("gentle", gentle(sft.update))):
            if not (folders[name] / "config.json").is_file():
                files = replace(sft, source="files", update=update)
                inputs = {"model": options.model, "data": path}
                tune(files, inputs, stage_run(folders[name], seed))
        if not (folders["continued"] / "config.json").is_file():
            # An example has about 22 tokens of answer, on and off taken together.
            more = replace(sft, num_rows=2 * (generated // 44))
            tune(more, {"model": options.model}, stage_run(folders["continued"], seed + 100))
        for name, folder in folders.items():
            results.setdefault(name, []).append(grades(folder, specs, options.problems))
        say(f"seed {seed}: {generated:,} generated tokens")
    write_json(out / "reason.json", {"rl": asdict(rl), "sft": asdict(sft), "grades": results})
    show(results)


def show(results: dict[str, list[dict[str, list[float]]]]) -> None:
    print(f"{'reward, on, greedy':<20}" + "".join(f"{name:>22}" for name in results))
    for name, spec in SLICES.items():
        print(f"{name:<20}", end="")
        for runs in results.values():
            means = [float(np.mean(run[spec])) for run in runs]
            print(f"{np.mean(means):>10.1%} ({min(means):.1%}-{max(means):.1%})", end="")
        print()
    for name, spec in SLICES.items():
        for other in ("tuned", *BASELINES):
            baselines = results[other] * (len(results["rl"]) // len(results[other]))
            pairs = zip(results["rl"], baselines, strict=True)
            gains = np.mean([np.subtract(a[spec], b[spec]) for a, b in pairs], axis=0)
            low, high = bootstrap(gains.tolist())
            ahead = "RL ahead" if low > 0 else f"{other} ahead" if high < 0 else "no difference"
            gain = f"{gains.mean():+.1%} ({low:+.1%} to {high:+.1%})"
            print(f"RL - {other:<10} {name:<16} {gain} {ahead}")


if __name__ == "__main__":
    main()
