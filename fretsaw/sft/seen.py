"""What a tuning really sees in all its steps: rows, tokens, learnt tokens, by file and mode."""

from collections.abc import Mapping, Sequence

from fretsaw.data import loader
from fretsaw.sft.examples import Example

Seen = Mapping[str, Mapping[str, Mapping[str, int]]]  # source -> mode -> rows, tokens, learnt


def count_seen(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    rows_per_step: int,
    num_steps: int,
    seed: int,
) -> Seen:
    """Return what all steps see, by source and mode; the last step may begin another epoch."""
    num_epochs, left = divmod(num_steps * rows_per_step, len(rows))
    again = set(loader.order(len(rows), len(rows), seed=seed, step=num_epochs)[:left])
    seen: dict[str, dict[str, dict[str, int]]] = {}
    for number, row in enumerate(rows):
        times = num_epochs + (number in again)
        for example in (examples[i] for i in row):
            of_mode = seen.setdefault(example.source, {}).setdefault(
                example.mode, {"rows": 0, "tokens": 0, "learnt": 0}
            )
            of_mode["rows"] += times
            of_mode["tokens"] += times * len(example.token_ids)
            of_mode["learnt"] += times * example.num_learnt
    return {source: dict(sorted(modes.items())) for source, modes in sorted(seen.items())}


def seen_table(seen: Seen) -> list[dict[str, str]]:
    """Return the rows of the table for the screen; shares are of all learnt tokens."""
    total = sum(counts["learnt"] for modes in seen.values() for counts in modes.values())
    return [
        {
            "source": source,
            "reasoning": mode,
            **{name: f"{number:,}" for name, number in counts.items()},
            "share": f"{counts['learnt'] / max(1, total):.1%}",
        }
        for source, modes in seen.items()
        for mode, counts in modes.items()
    ]
