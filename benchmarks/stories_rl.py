"""A public checkpoint through tuning on real rows and reinforcement on a reward it can learn.

    python benchmarks/stories_rl.py --data ../shared/data --out runs/stories-rl

stories260K (a base model of children's stories) is tuned on GSM8K in both modes and on very short
stories that hold an asked word, then reinforced: a story earns 1 where it has the asked word and
ends by itself. The commands are those a user would type, and are printed.
"""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

MAX_WORDS = 40  # of a very short story
NUM_STORIES, NUM_QUESTIONS, NUM_WORDS = 1500, 300, 30
PROMPT = "Tell a very short story with the word: {word}."


def short_stories(text: str) -> list[str]:
    """Return the first sentences of every story, up to `MAX_WORDS` words."""
    stories = []
    for story in text.split("<|endoftext|>"):
        kept: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(story.split())):
            if sum(len(s.split()) for s in kept) + len(sentence.split()) > MAX_WORDS:
                break
            kept.append(sentence)
        if kept:
            stories.append(" ".join(kept))
    return stories


def write_rows(data: Path, out: Path) -> None:
    """Write the rows to tune on and the problems to reinforce: the commonest longer words."""
    rng = random.Random(0)
    stories = short_stories((data / "corpora/tinystories_train_prefix.txt").read_text())
    words = [set(re.findall(r"\b[a-z]{4,}\b", story)) for story in stories]
    counts = Counter(word for own in words for word in own)
    known = {word for word, _ in counts.most_common(NUM_WORDS)}
    rows = []
    for story, own in zip(stories, words, strict=True):
        choices = sorted(own & known)
        if choices and len(rows) < NUM_STORIES:
            turns = [
                {"role": "user", "content": PROMPT.format(word=rng.choice(choices))},
                {"role": "assistant", "content": story},
            ]
            rows.append({"messages": turns, "mode": "off"})
    problems = [
        {"prompt": PROMPT.format(word=word), "answer": word, "grader": "contains"}
        for word in sorted(known)
    ]
    questions = (data / "gsm8k/train.jsonl").read_text().splitlines()[:NUM_QUESTIONS]
    (out / "stories.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (out / "problems.jsonl").write_text("\n".join(map(json.dumps, problems)) + "\n")
    (out / "gsm8k.jsonl").write_text("\n".join(questions) + "\n")


def fretsaw(*words: str | Path) -> None:
    command = [str(word) for word in words]
    print("\n$ fretsaw", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "fretsaw", *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune and reinforce a public checkpoint")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/stories-rl"))
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    write_rows(options.data, out)
    common = ("--dtype", "fp32", "--seed", options.seed)
    tuned, reinforced = out / f"sft-{options.seed}", out / f"rl-{options.seed}"
    fretsaw(
        *("sft", "--model", options.data / "models/stories260K"),
        *("--data", out / "gsm8k.jsonl", out / "stories.jsonl", "--too-long", "skip"),
        *("--epochs", "2", "--batch-tokens", "4096", "--optimizer", "muon"),
        *("--muon-learning-rate", "0.01", "--learning-rate", "2e-3"),
        *("--out", tuned, *common),
    )
    fretsaw(
        *("rl", "--model", tuned, "--task", out / "problems.jsonl", "--on-share", "0"),
        *("--num-rollouts", str(options.rollouts), "--prompts-per-rollout", "24"),
        *("--updates-per-rollout", "1", "--max-tokens", "100", "--learning-rate", "5e-4"),
        *("--normalise-rewards", "False", "--kl-coef", "0", "--weight-decay", "0"),
        *("--out", reinforced, *common),
    )
    metrics = json.loads((reinforced / "manifest.json").read_text())["metrics"]
    rows = [json.loads(line) for line in (reinforced / "metrics.jsonl").read_text().splitlines()]
    sampled = [row["reward_off"] for row in rows]
    tenth = max(1, len(sampled) // 10)
    print(f"\nsampled reward, first and last tenth of {len(sampled)} rollouts: "
          f"{sum(sampled[:tenth]) / tenth:.3f} -> {sum(sampled[-tenth:]) / tenth:.3f}")  # fmt: skip
    print(f"held-out words, greedy: {metrics['before_reward_off']:.3f} -> "
          f"{metrics['heldout_reward_off']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
