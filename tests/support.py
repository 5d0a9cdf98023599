"""What several tests call."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.reasoning import Mode
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.pipeline.launch import run_request
from fretsaw.rollout.rows import Row
from fretsaw.stage.execute import Interrupted, StageRun
from fretsaw.stage.progress import Progress
from fretsaw.stage.whole import write_json
from fretsaw.stage.workers import HERE, Workers


def stage_run(folder: Path, *, seed: int = 0, workers: Workers = HERE) -> StageRun:
    """Return what a stage is given when a test calls its function directly."""
    folder.mkdir(parents=True, exist_ok=True)
    return StageRun(folder, seed, "cpu", "fp32", Progress("test", folder), workers=workers)


def stopped_at(step: int, run: StageRun, go: Callable[[StageRun], object]) -> None:
    """Run a stage until it has done `step` steps, where it is asked to stop as by SIGTERM."""
    plain = run.step

    def stopping(at: int, metrics: dict | None = None, **options) -> None:
        plain(at, metrics, **options)
        run.stop_requested = at + 1 >= step  # so that the next step reports, saves and stops

    run.step = stopping  # type: ignore[method-assign]
    run.stop_requested = step == 1
    with pytest.raises(Interrupted):
        go(run)


def start_here(request: Mapping[str, Any], path: Path, launcher: str = "python") -> int:
    """Run a stage of a recipe in this process, as `launch.start` does in one of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, request)
    run_request(path)
    return 0


def answer_row(
    group: int, mode: str, completion: str, *, kind: str = "2 steps", reward: float = 1.0
) -> Row:
    """Return a graded answer that was never sampled."""
    return Row(
        **{"problem": str(group), "kind": kind, "mode": mode, "group": group, "index": 0},
        **{"question": f"Question {group} <b>?", "prompt": "", "completion": completion},
        **{"prompt_ids": [1], "token_ids": [2], "logprobs": [-0.5], "is_finished": True},
        **{
            "num_tokens": 1,
            "top_p": 1.0,
            "is_graded": True,
            "temperature": 0.0,
            "seed": 0,
            "weight_version": 0,
            "correct": reward,
        },
        **{"fault": None, "found": "4", "expected": "4", "reward": reward},
    )


def swap_tokens(folder: Path) -> None:
    """Make a folder's tokenizer another one: two ids of its vocabulary change places."""
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    a, b = [token for token, id in vocabulary.items() if id in (290, 291)]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(raw))


def prompt_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    mode: Mode,
    *,
    toggle: Toggle = "v1",
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Return what asks for the next answer in the Llama-Nemotron format."""
    return NemotronFormat(tokenizer, toggle).prompt_ids(messages, mode, tools)
