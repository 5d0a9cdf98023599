"""lm-evaluation-harness itself against the real server, on tasks from local files."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from serving import LESSONS, Remote

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint

TASKS = Path(__file__).with_name("tasks")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task files, naming their data by full path, as the harness wants it."""
    folder = tmp_path_factory.mktemp("tasks") / "tasks"
    shutil.copytree(TASKS, folder)
    for path in folder.glob("*.yaml"):
        task = yaml.safe_load(path.read_text())
        files = task["dataset_kwargs"]["data_files"]
        task["dataset_kwargs"]["data_files"] = {k: str(folder / v) for k, v in files.items()}
        path.write_text(yaml.safe_dump(task))
    return folder


def evaluate(tasks: Path, monkeypatch, model: str, task: str, **more: Any) -> dict[str, Any]:
    """Run the harness on one task and return its results."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    run: Any = lm_eval.simple_evaluate  # wrapped in a way that hides its parameters
    found = run(
        model=model, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0, **more
    )
    assert found is not None
    return found


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("reasoning", [True, False])
def test_a_generation_task(live: Remote, tasks: Path, monkeypatch, reasoning: bool) -> None:
    effort = {} if reasoning else {"reasoning_effort": "none"}
    found = evaluate(
        tasks,
        monkeypatch,
        "local-chat-completions",
        "served_generation",
        model_args={
            "model": "toggled",
            "base_url": f"{live.url}/v1/chat/completions",
            "max_length": 256,
            "num_concurrent": 4,
        },
        apply_chat_template=True,
        gen_kwargs=effort or None,
    )
    answers = {
        s["doc"]["question"]: s["filtered_resps"][0] for s in found["samples"]["served_generation"]
    }
    assert answers == {question: answer for question, (_, answer) in LESSONS.items()}
    assert found["results"]["served_generation"]["exact_match,none"] == 0.75


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("how", [{"batch_size": 1}, {"batch_size": 8}, {"num_concurrent": 4}])
def test_a_log_likelihood_task(
    live: Remote, tasks: Path, toggled: Path, monkeypatch, how: dict[str, int]
) -> None:
    found = evaluate(
        tasks,
        monkeypatch,
        "local-completions",
        "served_choice",
        model_args={
            "model": "toggled",
            "base_url": f"{live.url}/v1/completions",
            "tokenizer_backend": "remote",
            "max_length": 256,
            **how,
        },
    )
    decoder, tokenizer = checkpoint.load(toggled), Tokenizer.from_folder(toggled)
    samples = found["samples"]["served_choice"]
    assert len(samples) == 4
    for sample in samples:
        for choice, (logprob, is_greedy) in zip(
            sample["doc"]["choices"], sample["filtered_resps"], strict=True
        ):
            own = score(decoder, tokenizer, sample["doc"]["text"], choice)
            assert logprob == pytest.approx(own[0], abs=1e-4)
            assert is_greedy == own[1]
    assert found["results"]["served_choice"]["acc,none"] >= 0.5


def score(decoder: Any, tokenizer: Tokenizer, text: str, choice: str) -> tuple[float, bool]:
    """Return a continuation's log-probability by one plain forward, and whether it is greedy."""
    whole, before = tokenizer.encode(text + choice), tokenizer.encode(text)
    with torch.inference_mode():
        logits = decoder(torch.tensor([whole]))[0, len(before) - 1 : -1]
    targets = torch.tensor(whole[len(before) :])
    logprobs = logits.float().log_softmax(-1)
    is_greedy = bool((logprobs.argmax(-1) == targets).all())
    return logprobs.gather(-1, targets[:, None]).sum().item(), is_greedy
