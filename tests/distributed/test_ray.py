"""Two Ray nodes on one machine give what one worker gives; a lost worker loses nothing."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import stage_run

from fretsaw.distributed.ray import require_answer
from fretsaw.puzzle.score import score
from fretsaw.puzzle.settings import ScoreSettings, SpaceSettings
from fretsaw.workers import Workers

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fretsaw[ray]'")


@pytest.fixture(scope="module")
def address(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[str]:
    """Two nodes of one CPU each, started as `ray start` does."""
    from ray.cluster_utils import Cluster

    monkeypatch_module.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(**options)
    yield str(cluster.address)
    cluster.shutdown()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def workers_of_ray() -> list[int]:
    """Return the processes below this one in which Ray does a task."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            )
            if (folder / "cmdline").read_bytes().startswith(b"ray::_do"):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in found if is_ours(pid)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_nodes_score_as_one_worker_does(tiny: Path, tmp_path: Path, address: str) -> None:
    space = SpaceSettings(kv_heads=(2,), ffn_percents=(50, 25))
    settings = ScoreSettings(
        space=space, repair_tokens=512, tokens=512, seq_len=64, batch_rows=4, ahead=0
    )
    inputs = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    score(settings, inputs, stage_run(tmp_path / "one", workers=Workers(workers=1)))

    run = stage_run(tmp_path / "ray", workers=Workers(ray=address, workers=2))
    plain, handler, killed = run.step, signal.getsignal(signal.SIGTERM), []

    def step(at: int, *arguments, **options) -> None:
        assert signal.getsignal(signal.SIGTERM) is handler
        if at >= 3 and not killed and workers_of_ray():
            killed.append(workers_of_ray()[0])
            os.kill(killed[0], signal.SIGKILL)
        plain(at, *arguments, **options)

    run.step = step  # type: ignore[method-assign]
    score(settings, inputs, run)
    assert killed
    expected = (tmp_path / "one" / "scores.json").read_bytes()
    assert (tmp_path / "ray" / "scores.json").read_bytes() == expected
    assert workers_of_ray() == []


def test_an_address_that_does_not_answer_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"--ray 127\.0\.0\.1:9: no Ray cluster answers .* 3 s;"):
        require_answer("127.0.0.1:9", deadline_s=3)
    with pytest.raises(ValueError, match=r"--ray nonsense: Ray does not connect \(.*\); start one"):
        require_answer("nonsense")
