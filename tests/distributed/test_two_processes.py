"""Two processes are one: gradients, losses, resuming on another number of them, losing one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import together
import torch
from patience import patient
from safetensors.torch import load_file

from fretsaw.stage.peers import ALONE

TORCHRUN = [sys.executable, "-m", "fretsaw.distributed.torchrun", "--standalone"]
TWO = [*TORCHRUN, "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(part: str, tiny: Path, out: Path) -> None:
    command = [*TWO, together.__file__, part, str(tiny), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    together.first(tiny, one)
    start("first", tiny, two)
    return one, two


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    """The same losses at every step, and the same weights in the end."""
    assert len(rows_of(one)) == len(rows_of(two)) >= 6
    for ours, theirs in zip(rows_of(one), rows_of(two), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"phase", "tokens_per_s"}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5), (name, ours["step"])
    weights, others = (load_file(next(folder.glob("*.safetensors"))) for folder in (one, two))
    torch.testing.assert_close(weights, others, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    one, two = (torch.load(folder / "gradients.pt", weights_only=True) for folder in runs)
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        limit = 1e-10 if name.startswith("float64") else 1e-5
        worst = (gradient - two[name]).abs().max() / gradient.abs().max()
        assert worst < limit, name


@pytest.mark.parametrize("run", [*together.UPDATES, "tuned", "tuned-lora"])
def test_losses_are_those_of_one_process(runs: tuple[Path, Path], run: str) -> None:
    assert_same_run(runs[0] / run, runs[1] / run)


def test_a_run_goes_on_with_one_process_and_again_with_two(
    runs: tuple[Path, Path], tiny: Path
) -> None:
    one, two = runs
    for optimizer in together.UPDATES:
        folder = two / f"{optimizer}-stopped"
        assert [row["step"] for row in rows_of(folder)] == [1, 2]
        together.heal(tiny, folder, optimizer, ALONE, stop_at=4)
        assert [row["step"] for row in rows_of(folder)] == [1, 2, 3, 4]
    start("last", tiny, two)
    for optimizer in together.UPDATES:
        assert_same_run(one / optimizer, two / f"{optimizer}-stopped")


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_is_named_and_the_same_command_goes_on(
    tiny: Path, tmp_path: Path
) -> None:
    batch = ("--batch-tokens", "512", "--micro-batch-tokens", "256", "--seq-len", "64")
    command = [
        *(*TWO, "-m", "fretsaw", "pretrain", "--corpus", str(tiny / "corpus"), *batch),
        *("--num-hidden-layers", "2", "--hidden-size", "32", "--intermediate-size", "64"),
        *("--tokens", str(512 * 40), "--heldout-tokens", "1024", "--save-every-s", "0"),
        *("--device", "cpu", "--dtype", "fp32", "--out", str(tmp_path / "model")),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    partial = tmp_path / ".model.partial"
    deadline = time.monotonic() + patient(120)
    while not [*partial.glob("resume/step-*[1-9]")] and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=patient(60))
    assert process.returncode == 1
    assert re.search(rf"fretsaw: rank \d \(pid {workers[1]}\) was killed by SIGKILL", errors)

    result = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr[-4000:]
    assert [row["step"] for row in rows_of(tmp_path / "model")] == [*range(1, 41)]
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    assert manifest["run"]["processes"] == 2


def test_what_runs_in_one_process_refuses_torchrun(tmp_path: Path) -> None:
    two = {**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "fretsaw", "rank", "--out", str(tmp_path / "r")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=two)
    assert result.returncode == 2
    assert "runs in one" in result.stderr
