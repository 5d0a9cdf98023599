"""Rollout tables that are not as they were written, and what a run says and does meanwhile."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rl.toy import SETTINGS
from support import stage_run, stopped_at

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.engine.engine import Engine
from fretsaw.engine.sequence import Event, RequestFailed
from fretsaw.rl import train
from fretsaw.rl.rollouts import drop_damaged
from fretsaw.rl.train import reinforce
from fretsaw.rl.update import policy_gradient
from fretsaw.rollout.rows import DamagedRows, Row, read_rows, write_rows
from fretsaw.stage import progress
from fretsaw.stage.execute import Interrupted, StageRun
from fretsaw.training.optimizer import apply_gradients, build_optimizers

Damage = Callable[[Path, Path], None]  # of a table, given another run's folder


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_rows(path: Path, other: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 40), path)


def double_rows(path: Path, other: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take([*range(63), 62]), path)


def write_fewer(path: Path, other: Path) -> None:
    write_rows(path, read_rows(path)[:-1])


def take_another_runs(path: Path, other: Path) -> None:
    shutil.copy(other / "rollouts" / path.name, path)


def take_another_rollouts(path: Path, other: Path) -> None:
    shutil.copy(path.with_name("00000.parquet"), path)


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [flip, cut, drop_rows, double_rows, write_fewer, take_another_runs, empty]


@pytest.fixture(scope="session")
def other(chat_model: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run of the same problems and seed, with another rate."""
    out = tmp_path_factory.mktemp("other")
    settings = replace(SETTINGS, update=replace(SETTINGS.update, learning_rate=2e-3))
    reinforce(settings, {"model": chat_model, "problems": problems}, stage_run(out))
    return out


def go(chat_model: Path, problems: Path, run: StageRun) -> dict:
    return reinforce(SETTINGS, {"model": chat_model, "problems": problems}, run)


@pytest.mark.parametrize("damage", [*DAMAGES, take_another_rollouts])
def test_a_damaged_rollout_that_no_update_has_read_is_sampled_again(
    chat_model: Path, problems: Path, finished, other: Path, tmp_path: Path, damage: Damage, capsys
) -> None:
    stopped_at(2, stage_run(tmp_path), lambda run: go(chat_model, problems, run))
    shutil.copy(finished[0] / "rollouts/00001.parquet", tmp_path / "rollouts/00001.parquet")
    damage(tmp_path / "rollouts/00001.parquet", other)
    capsys.readouterr()
    assert go(chat_model, problems, stage_run(tmp_path)) == finished[1]
    said = capsys.readouterr().err
    assert "00001.parquet: " in said
    assert "sampled again, for no update has read it yet" in said
    for name in ("model.safetensors", "rollouts/00001.parquet"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_rollout_that_is_half_used_ends_the_run_with_the_remedy(
    chat_model: Path, problems: Path, finished, other: Path, tmp_path: Path, damage: Damage
) -> None:
    stopped_at(3, stage_run(tmp_path), lambda run: go(chat_model, problems, run))
    damage(tmp_path / "rollouts/00001.parquet", other)
    message = (
        r"00001\.parquet: .* the weights before its first 1 of 2 updates: remove (\S+) with it"
    )
    with pytest.raises(ValueError, match=message) as caught:
        go(chat_model, problems, stage_run(tmp_path))
    newer = str(caught.value).rpartition("remove ")[2].split()[0]
    shutil.rmtree(newer)
    (tmp_path / "rollouts/00001.parquet").unlink()
    assert go(chat_model, problems, stage_run(tmp_path)) == finished[1]
    model = "model.safetensors"
    assert (tmp_path / model).read_bytes() == (finished[0] / model).read_bytes()


def test_without_an_older_state_the_remedy_is_to_start_again(
    chat_model: Path, problems: Path, tmp_path: Path
) -> None:
    stopped_at(1, stage_run(tmp_path), lambda run: go(chat_model, problems, run))
    for state in sorted((tmp_path / "resume").glob("step-*"))[:-1]:
        shutil.rmtree(state)
    flip(tmp_path / "rollouts/00000.parquet", tmp_path)
    with pytest.raises(ValueError, match=rf"remove {tmp_path} to start again"):
        go(chat_model, problems, stage_run(tmp_path))


def test_no_damage_is_read_in_silence(finished, tmp_path: Path) -> None:
    """Every 97th byte flipped, and every 997th cut: refused, or the rows are the same."""
    content = (finished[0] / "rollouts/00000.parquet").read_bytes()
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    rows = read_rows(path)
    num_refused = 0
    for at in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert read_rows(path) == rows
        except DamagedRows:
            num_refused += 1
    assert num_refused > 0.5 * len(content) / 97
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedRows, match="its bytes are damaged"):
            read_rows(path)


def test_a_table_of_other_columns_is_none_of_ours(tmp_path: Path, finished) -> None:
    path = tmp_path / "a.parquet"
    table = pq.read_table(finished[0] / "rollouts/00000.parquet")
    pq.write_table(table.drop_columns(["reward"]), path)
    with pytest.raises(DamagedRows, match="its columns are not those of a rollout table"):
        read_rows(path)
    with pytest.raises(ValueError, match="no such file"):
        read_rows(tmp_path / "b.parquet")


def test_tables_without_a_checksum_are_read_where_no_purpose_is_named(
    tmp_path: Path, finished
) -> None:
    whole = finished[0] / "rollouts/00000.parquet"
    path = tmp_path / "a.parquet"
    pq.write_table(pq.read_table(whole).replace_schema_metadata(None), path)
    assert read_rows(path) == read_rows(whole)
    with pytest.raises(DamagedRows, match="not those that were written"):
        read_rows(path, purpose="any")


def test_a_damaged_record_of_updates_made_is_removed_and_told(
    finished: tuple[Path, dict], tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    rows = read_rows(finished[0] / "rollouts/00000.parquet")
    for index in range(3):
        write_rows(folder / f"{index:05d}.parquet", rows, purpose=f"mine {index}")
    flipped = bytearray((folder / "00001.parquet").read_bytes())
    flipped[len(flipped) // 3] ^= 8
    (folder / "00001.parquet").write_bytes(flipped)
    drop_damaged(folder, "mine")
    assert [path.name for path in sorted(folder.iterdir())] == ["00000.parquet", "00002.parquet"]
    assert "00001.parquet" in capsys.readouterr().err


# --- what a run says and does ---------------------------------------------------------------------


def test_sampling_says_how_far_it_is(
    chat_model: Path, problems: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.0)
    settings = replace(SETTINGS, num_rollouts=1, updates_per_rollout=1)
    reinforce(settings, {"model": chat_model, "problems": problems}, stage_run(tmp_path))
    said = capsys.readouterr().err
    assert "measuring, held-out on 2/2 answers" in said
    assert "reinforcing, sampling 64/64 answers  " in said
    assert " tokens/s  done" in said
    assert re.search(r"sampling 0/64 answers  [1-9][\d,]* tokens/s\n", said)  # before any has ended
    assert re.search(r"sampling 9/64 answers  [1-9][\d,]* tokens/s  eta [\d.]+ s\n", said)


def test_a_second_stop_ends_the_sampling(chat_model: Path, problems: Path, tmp_path: Path) -> None:
    run = stage_run(tmp_path)
    run.stop_requested = run.stops_sooner = True
    with pytest.raises(Interrupted):
        go(chat_model, problems, run)
    assert not list((tmp_path / "rollouts").iterdir())


def failing(which: Callable[[int], bool]) -> type[Engine]:
    class Failing(Engine):
        """Some of its answers fail at their end."""

        def generate(self, requests, **more):
            for event in super().generate(requests, **more):
                if not which(event.request):
                    yield event
                elif event.finish_reason is not None:
                    yield Event(event.request, None, 0.0, "error", error="not finite")

    return Failing


def test_an_answer_that_fails_is_left_out_and_told(
    chat_model: Path, problems: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(train, "Engine", failing(lambda number: number % 7 == 3))
    settings = replace(SETTINGS, needs_signal=False)
    reinforce(settings, {"model": chat_model, "problems": problems}, stage_run(tmp_path))
    rows = read_rows(tmp_path / "rollouts/00000.parquet")
    failed = [row for row in rows if row.error is not None]
    assert [row.group * 8 + row.index for row in failed] == [*range(3, 64, 7)]
    for row in failed:
        assert (row.reward, row.advantage, row.trainer_logprobs) == (0.0, 0.0, [])
    said = capsys.readouterr().err
    assert "sampling: 9 of 64 answers failed, the first of prompt 0: not finite; they count" in said
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["failed"] == pytest.approx(9 / 64)
    model = checkpoint.load(chat_model)
    found = [
        policy_gradient(model, some, SETTINGS, "fp32") for some in (rows, _without(failed, rows))
    ]
    assert found[0] == found[1]


def _without(failed: list[Row], rows: list[Row]) -> list[Row]:
    return [row for row in rows if row not in failed]


def test_a_run_whose_answers_all_fail_ends_in_a_sentence(
    chat_model: Path, problems: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(train, "Engine", failing(lambda number: True))
    with pytest.raises(RequestFailed, match="sampling: 2 of 2 answers failed, the first of prompt"):
        go(chat_model, problems, stage_run(tmp_path))


def test_a_table_that_has_no_column_of_errors(tmp_path: Path, finished) -> None:
    whole = finished[0] / "rollouts/00000.parquet"
    pq.write_table(pq.read_table(whole).drop_columns(["error"]), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == read_rows(whole)


def test_an_update_without_a_gradient_changes_nothing_and_says_so(
    chat_model: Path, problems: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, kl_coef=0.0, max_tokens=1, needs_signal=False, num_rollouts=1)
    reinforce(settings, {"model": chat_model, "problems": problems}, stage_run(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [1.0, 1.0]
    before, after = (checkpoint.load(folder).state_dict() for folder in (chat_model, tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_neither_moments_nor_decay_move_without_a_gradient(chat_model: Path, finished) -> None:
    settings = replace(SETTINGS, kl_coef=0.0)
    rows = read_rows(finished[0] / "rollouts/00000.parquet")
    model = checkpoint.load(chat_model)
    optimizers = build_optimizers(model, settings.update)
    for advantage, moves in ((0.0, False), (1.0, True), (0.0, False)):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        held = [[*map(torch.clone, s.values())] for o in optimizers for s in o.state.values()]
        policy_gradient(model, [replace(r, advantage=advantage) for r in rows], settings, "fp32")
        apply_gradients(model, optimizers, settings.update, step=0, num_steps=2)
        same = all(torch.equal(weights[n], v) for n, v in model.state_dict().items())
        now = [[*s.values()] for o in optimizers for s in o.state.values()]
        assert same != moves
        if not moves:
            assert all(
                torch.equal(a, b)
                for x, y in zip(held, now, strict=True)
                for a, b in zip(x, y, strict=True)
            )
