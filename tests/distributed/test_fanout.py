"""Tasks on several processes: nothing is lost, nothing depends on how many there are."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fanned
import pytest
import torch
from patience import patient

from fretsaw.distributed import fanout
from fretsaw.distributed.fanout import fan_out
from fretsaw.stage.workers import Workers

TWO = Workers(workers=2)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def pids(folder: Path, what: str) -> list[int]:
    return [int(path.name.split("-")[1]) for path in folder.glob(f"{what}-*")]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_task_is_done_once_whoever_does_it(tmp_path: Path, count: int) -> None:
    heard = []
    threads = torch.get_num_threads()
    with fan_out(partial(fanned.squares, tmp_path), Workers(workers=count)) as map_tasks:
        for tasks in ([3, 1, 2, 5], [7, 0.5], []):
            told = lambda index, said, tasks=tasks: heard.append(tasks[index] == said)  # noqa: E731
            assert sorted(map_tasks(tasks, told)) == [(i, t * t) for i, t in enumerate(tasks)]
    assert heard == [True] * 6
    assert 1 <= len(pids(tmp_path, "prepared")) <= max(1, count), "once a worker"
    assert torch.get_num_threads() == threads
    assert not any(map(is_alive, set(pids(tmp_path, "prepared")) - {os.getpid()}))


def test_a_dead_workers_task_is_done_by_another(tmp_path: Path) -> None:
    with fan_out(partial(fanned.squares, tmp_path), TWO) as map_tasks:
        assert sorted(map_tasks([1, "die once", 2])) == [(0, 1), (1, 121), (2, 4)]
        for pid in filter(is_alive, pids(tmp_path, "prepared")):  # they are idle now
            os.kill(pid, signal.SIGKILL)
        assert sorted(map_tasks([3, 4])) == [(0, 9), (1, 16)]


def test_a_task_that_kills_its_workers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MAX_LOSSES", 1)
    with (
        fan_out(partial(fanned.squares, tmp_path), TWO) as map_tasks,
        pytest.raises(RuntimeError, match=r"task 0 \(die\): its worker died 2 times .*code -9"),
    ):
        list(map_tasks(["die"]))


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_comes_with_its_workers_traceback(tmp_path: Path, count: int) -> None:
    with (
        fan_out(partial(fanned.squares, tmp_path), Workers(workers=count)) as map_tasks,
        pytest.raises(KeyError, match="a task that fails") as raised,
    ):
        list(map_tasks([1, "fail", 2, 3]))
    if count:
        assert 'raise KeyError("a task that fails")' in raised.value.__notes__[0]


def test_a_stop_ends_workers_in_the_middle_of_a_task(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def check() -> None:
        if len(pids(tmp_path, "asleep")) == 2:
            raise Stop

    with (
        pytest.raises(Stop),
        fan_out(partial(fanned.squares, tmp_path), TWO, check=check) as map_tasks,
    ):
        list(map_tasks(["sleep"] * 3))
    assert not any(map(is_alive, pids(tmp_path, "asleep")))


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import pathlib, functools, fanned; from fretsaw.distributed.fanout import fan_out\n"
        "from fretsaw.stage.workers import Workers\n"
        "if __name__ == '__main__':\n"
        f"    prepare = functools.partial(fanned.squares, pathlib.Path({str(tmp_path)!r}))\n"
        "    with fan_out(prepare, Workers(workers=2)) as map_tasks:\n"
        "        list(map_tasks(['sleep'] * 2))\n"
    )
    (tmp_path / "script.py").write_text(script)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], env=os.environ | {"PYTHONPATH": path}
    )
    wait_until(lambda: len(pids(tmp_path, "asleep")) == 2)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, pids(tmp_path, "asleep"))))


def test_workers_of_a_run_are_recorded_and_change_nothing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(
        "from fretsaw.puzzle.settings import ScoreSettings, SpaceSettings\n"
        "from fretsaw.pipeline.recipe import Stage\n"
        "SPACE = SpaceSettings(kv_heads=(2,), ffn_percents=(), linear=False)\n"
        "SCORE = ScoreSettings(space=SPACE, repair_tokens=512, tokens=256, seq_len=64)\n"
        f"INPUTS = {{n: {str(tiny)!r} + '/' + n for n in ('parent', 'corpus', 'ranking')}}\n"
        "def recipe():\n"
        "    return [Stage('score', SCORE, INPUTS)]\n"
    )
    command = [sys.executable, "-m", "fretsaw", "run", "recipe.py", "--out", "run"]
    command += ["--device", "cpu", "--dtype", "fp32"]
    path = str(Path(__file__).parents[2])

    def run(*options: str) -> str:
        environment = os.environ | {"PYTHONPATH": path}
        result = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stderr

    run("--workers", "2")
    manifest = json.loads((tmp_path / "run/score/manifest.json").read_text())
    assert manifest["run"]["workers"] == 2
    assert "workers" not in manifest["settings"]
    assert "score: done" in run()


def wait_until(condition, deadline_s: float = 60) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < patient(deadline_s), "waited too long"
        time.sleep(0.05)


def test_processes_of_one_machine_do_not_time_one_another() -> None:
    with (
        pytest.raises(ValueError, match="--workers 2: what is measured here is time"),
        fan_out(partial(fanned.squares, Path()), TWO, is_timing=True),
    ):
        pass
