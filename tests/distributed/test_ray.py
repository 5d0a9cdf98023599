"""Two Ray nodes on one machine give what one worker gives; a lost worker loses nothing."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import stage_run

from fretsaw.distributed.ray import cpus_of_each, require_answer
from fretsaw.puzzle.costs.cost import cost
from fretsaw.puzzle.scores.score import score
from fretsaw.puzzle.settings import CostSettings, ScoreSettings, SpaceSettings
from fretsaw.stage.workers import Workers

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fretsaw[ray]'")


@pytest.fixture(scope="module")
def cluster(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one CPU each, started as `ray start` does."""
    from ray.cluster_utils import Cluster

    monkeypatch_module.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(**options)
    yield cluster
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
def test_two_nodes_score_as_one_worker_does(tiny: Path, tmp_path: Path, cluster: Any) -> None:
    space = SpaceSettings(kv_heads=(2,), ffn_percents=(50, 25))
    settings = ScoreSettings(
        space=space, repair_tokens=512, tokens=512, seq_len=64, batch_rows=4, ahead=0
    )
    inputs = {name: tiny / name for name in ("parent", "corpus", "ranking")}
    score(settings, inputs, stage_run(tmp_path / "one", workers=Workers(workers=1)))

    run = stage_run(tmp_path / "ray", workers=Workers(ray=cluster.address, workers=2))
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


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_costs_are_timed_on_nodes_that_are_machines(
    tiny: Path, tmp_path: Path, cluster: Any
) -> None:
    settings = CostSettings(
        space=SpaceSettings(kv_heads=(1,), ffn_percents=(50,)),
        scenario="batch=1,in=4,out=4,dtype=fp32,device=cpu",
        rounds=2,
        layers=1,
        probes=1,
    )
    inputs = {"parent": tiny / "parent"}
    run = stage_run(tmp_path, workers=Workers(ray=cluster.address))
    with pytest.raises(ValueError, match="2 nodes are on one machine"):
        cost(settings, inputs, run)
    cluster.remove_node(next(n for n in cluster.list_all_nodes() if n is not cluster.head_node))
    cost(settings, inputs, run)
    assert json.loads((tmp_path / "costs.json").read_text())["alternatives"]["ffn64"]["params"] > 0
    kept = (run.resume_folder / "costs.json").read_text().splitlines()
    assert len(kept) == len(json.loads((tmp_path / "measurements.json").read_text()))
    assert {json.loads(json.loads(line)[0])[-1] for line in kept} == {0, 1}  # the rounds


def test_nodes_that_time_are_alike_and_apart() -> None:
    def node(host: str, cpus: float, *, is_alive: bool = True) -> dict:
        return {"Alive": is_alive, "NodeManagerHostname": host, "Resources": {"CPU": cpus}}

    head = {**node("head", 0), "Resources": {}}
    assert cpus_of_each([head, node("a", 8), node("b", 8), node("a", 8, is_alive=False)]) == 8
    with pytest.raises(ValueError, match="2 nodes are on one machine, a,"):
        cpus_of_each([node("a", 8), node("a", 8)])
    with pytest.raises(ValueError, match="nodes with 4 and 8 CPUs"):
        cpus_of_each([node("a", 8), node("b", 4)])
    with pytest.raises(ValueError, match="nodes with no CPUs"):
        cpus_of_each([head])


def test_an_address_that_does_not_answer_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"--ray 127\.0\.0\.1:9: no Ray cluster answers .* 3 s;"):
        require_answer("127.0.0.1:9", deadline_s=3)
    with pytest.raises(ValueError, match=r"--ray nonsense: Ray does not connect \(.*\); start one"):
        require_answer("nonsense")
