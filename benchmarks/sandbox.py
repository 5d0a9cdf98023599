"""How fast programs are graded: forked from a zygote, against an interpreter started for each.

Reads MBPP's rows (`--mbpp FILE`). Every backend that works here grades reference solutions both
ways, by turns, in one process; the ratio is the median of the rounds.

    .venv/bin/python benchmarks/sandbox.py --mbpp mbpp.jsonl --rows 20 --rounds 9
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import cast

from fretsaw.sandbox.backend import Backend, missing
from fretsaw.sandbox.sandbox import Sandbox


def seconds(sandbox: Sandbox, rows: list[dict], *, is_restarted: bool) -> float:
    """Return the seconds a row takes; `is_restarted` starts an interpreter for each."""
    started = time.perf_counter()
    for row in rows:
        tests, setup = row["test_list"], row["test_setup_code"]
        verdict = sandbox.run_tests(row["code"], tests, setup=setup)
        assert verdict.passed, f"task {row['task_id']}: {verdict}"
        if is_restarted:
            sandbox.close()
    return (time.perf_counter() - started) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mbpp", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.mbpp.read_text().splitlines()[: options.rows]]
    print("backend     zygote_ms  each_ms  ratio  (lowest to highest)")
    for backend in ("bubblewrap", "landlock"):
        if (reason := missing(cast(Backend, backend))) is not None:
            print(f"{backend}: {reason}")
            continue
        forked, started, ratios = [], [], []
        with Sandbox(backend=cast(Backend, backend)) as kept, Sandbox(backend=kept.backend) as new:
            kept.run("")
            for _ in range(options.rounds):
                forked.append(seconds(kept, rows, is_restarted=False))
                started.append(seconds(new, rows, is_restarted=True))
                ratios.append(started[-1] / forked[-1])
        print(
            f"{backend:10}  {1e3 * statistics.median(forked):9.1f}"
            f"  {1e3 * statistics.median(started):7.1f}  {statistics.median(ratios):5.1f}"
            f"  ({min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
