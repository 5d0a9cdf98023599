"""The artifact contract: done means the manifest is there and its inputs still match."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from fretsaw.stage import artifact, hashes, whole
from fretsaw.stage.artifact import StageRequest
from fretsaw.stage.execute import execute, finish
from fretsaw.stage.lineage import render_lineage
from fretsaw.stage.place import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    size: int = 3


def write_numbers(settings: Settings, inputs, run) -> dict[str, float]:
    (run.folder / "numbers.txt").write_text(" ".join(map(str, range(settings.size))))
    return {"size": settings.size}


def make(out: Path, settings: Settings, inputs: dict[str, Path], *, force: bool = False) -> dict:
    request = StageRequest.of("numbers", settings, inputs, seed=0)
    return execute(write_numbers, request, settings, out, device="cpu", dtype="fp32", force=force)


def test_equal_requests_give_equal_hashes_wherever_they_stand(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text("text")
        manifest = make(tmp_path / name / "out", Settings(), {"text": tmp_path / name / "text.txt"})
        hashes.append(artifact.artifact_hash(manifest))
    assert hashes[0] == hashes[1]
    assert set(manifest["outputs"]) == {"numbers.txt"}


def test_what_a_kill_left_half_written_is_no_output(tmp_path: Path) -> None:
    request = StageRequest.of("numbers", Settings(), {}, seed=0)
    folder = artifact.open_partial(tmp_path / "out", request)
    (folder / "rows").mkdir()
    (folder / "rows" / ".0001.parquet.77.tmp").write_text("half")
    assert set(make(tmp_path / "out", Settings(), {})["outputs"]) == {"numbers.txt"}


def test_what_is_done_is_not_done_again_and_what_changed_is(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    first = make(tmp_path / "out", Settings(), {"text": text})
    again = make(tmp_path / "out", Settings(), {"text": text})
    assert first["run"]["finished"] == again["run"]["finished"]
    text.write_text("two!")
    changed = make(tmp_path / "out", Settings(), {"text": text})
    assert changed["inputs"]["text"]["hash"] != first["inputs"]["text"]["hash"]
    (tmp_path / "out" / "numbers.txt").unlink()
    make(tmp_path / "out", Settings(), {"text": text})
    assert (tmp_path / "out" / "numbers.txt").is_file()


def test_changed_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    make(tmp_path / "out", Settings(size=3), {})
    with pytest.raises(Refused, match=r"size 3 -> 4.*removing that folder"):
        make(tmp_path / "out", Settings(size=4), {})
    make(tmp_path / "out", Settings(size=4), {}, force=True)
    assert (tmp_path / "out" / "numbers.txt").read_text() == "0 1 2 3"


def test_folders_of_others_are_never_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match="left alone"):
        make(out, Settings(), {})
    assert (out / "thesis.txt").read_text() == "years of work"


def test_an_error_leaves_no_output_and_is_kept_for_status(tmp_path: Path) -> None:
    def fail(settings, inputs, run):
        (run.folder / "half.txt").write_text("half")
        raise ValueError("the reason")

    request = StageRequest.of("numbers", Settings(), {}, seed=0)
    with pytest.raises(ValueError, match="the reason"):
        execute(fail, request, Settings(), tmp_path / "out", device="cpu", dtype="fp32")
    assert not (tmp_path / "out").exists()
    partial = artifact.partial_folder(tmp_path / "out")
    assert "the reason" in (partial / "error.txt").read_text()
    make(tmp_path / "out", Settings(), {})
    assert not partial.exists()


def test_work_on_other_inputs_is_discarded_and_on_the_same_continued(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    request = StageRequest.of("numbers", Settings(), {"text": text}, seed=0)
    partial = artifact.open_partial(tmp_path / "out", request)
    (partial / "kept").touch()
    assert (artifact.open_partial(tmp_path / "out", request) / "kept").exists()
    text.write_text("two!")
    assert not (artifact.open_partial(tmp_path / "out", request) / "kept").exists()


def test_a_refused_start_is_no_work_to_lose(tmp_path: Path) -> None:
    def refuse(settings, inputs, run):
        raise ValueError("size 3: too small")

    request = StageRequest.of("numbers", Settings(size=3), {}, seed=0)
    with pytest.raises(ValueError, match="too small"):
        execute(refuse, request, Settings(size=3), tmp_path / "out", device="cpu", dtype="fp32")
    make(tmp_path / "out", Settings(size=4), {})  # the corrected command
    assert (tmp_path / "out" / "numbers.txt").read_text() == "0 1 2 3"


def test_a_kill_between_manifest_and_name_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    def killed(beside: Path, out: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "take_name", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "out", Settings(), {})
    assert not (tmp_path / "out").exists()
    finished = artifact.read_manifest(artifact.partial_folder(tmp_path / "out"))
    assert make(tmp_path / "out", Settings(), {}) == finished  # not made again
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"manifest.json", "numbers.txt"}


def begun(tmp_path: Path) -> tuple[Path, StageRequest]:
    """Begin an output that holds work; return the request's file and the request."""
    (tmp_path / "input.txt").write_text("one")
    request = StageRequest("toy", {}, {"text": tmp_path / "input.txt"}, 0)
    partial = artifact.open_partial(tmp_path / "out", request)
    (partial / "kept").write_text("hours of work")
    return partial / artifact.REQUEST, request


def test_work_is_never_discarded_for_a_request_that_is_damaged(tmp_path: Path) -> None:
    path, request = begun(tmp_path)
    whole = path.read_text()
    digest = json.loads(whole)["inputs"]["text"]
    for damaged in (whole.replace(digest, digest[::-1]), whole[:40], "", "[]", None):
        path.unlink() if damaged is None else path.write_text(damaged)
        with pytest.raises(ValueError, match=r"request.json: .*; remove .* to start that stage"):
            artifact.open_partial(tmp_path / "out", request)
        assert (path.parent / "kept").exists()
    path.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != "sha256"}))
    assert (artifact.open_partial(tmp_path / "out", request) / "kept").exists()


def test_work_on_another_input_is_discarded_and_that_is_said(tmp_path: Path) -> None:
    path, request = begun(tmp_path)
    (tmp_path / "input.txt").write_text("two")
    said: list[str] = []
    artifact.open_partial(tmp_path / "out", request, tell=said.append)
    assert said == [f"toy: an input changed since {path.parent} was begun, so it starts again"]


@pytest.mark.parametrize("told", [["cqu", "fp32"], ["cpu", "fp22"], ["cpu"], "cpu"])
def test_a_damaged_precision_is_told(tmp_path: Path, told) -> None:
    path, _ = begun(tmp_path)
    (path.parent / artifact.PRECISION).write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"precision.json: damaged, .*; remove it"):
        artifact.recorded_precision(tmp_path / "out")


def test_an_atomic_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole.atomic_folder(tmp_path / "out") as folder:
        (folder / "half").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []
    with whole.atomic_folder(tmp_path / "out") as folder:
        (folder / "whole").touch()
    assert (tmp_path / "out" / "whole").is_file()


def test_disk_that_is_too_small_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MiB needed, .* MiB free"):
        artifact.require_disk(tmp_path / "not" / "yet", 1 << 60)


def test_lineage_names_every_ancestor_and_what_changed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    make(tmp_path / "a", Settings(), {"text": text})
    make(tmp_path / "b", Settings(), {"first": tmp_path / "a"})
    shown = render_lineage(tmp_path / "b")
    assert str(text) in shown
    assert "changed since" not in shown
    text.write_text("two!")
    assert "changed since" in render_lineage(tmp_path / "b")


def test_a_manifest_of_another_schema_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", Settings(), {})
    path = tmp_path / "a" / artifact.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 9}))
    with pytest.raises(ValueError, match="schema 9"):
        artifact.read_manifest(tmp_path / "a")


def test_a_setting_that_an_earlier_version_had_not_was_at_its_default(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Part:
        rate: float = 0.5
        momentum: float = 0.9  # new

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Grown(Settings):
        part: Part = Part()
        weights: tuple[float, ...] = ()  # new

    out = tmp_path / "out"
    make(out, Settings(), {})
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["settings"]["part"] = {"rate": 0.5}
    (out / "manifest.json").write_text(json.dumps(manifest))

    def ask(settings: Grown) -> str | None:
        return artifact.staleness(out, StageRequest.of("numbers", settings, {}, seed=0))

    assert ask(Grown()) is None
    for other in (Grown(weights=(1.0,)), Grown(part=Part(momentum=0.8)), Grown(part=Part(rate=1))):
        with pytest.raises(Refused, match="made with other settings"):
            ask(other)


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("names", [[".out.partial"], [".out.old"], [".out.partial", ".out.old"]])
def test_asking_what_a_kill_left_unsettled_changes_nothing(
    tmp_path: Path, names: list[str]
) -> None:
    make(tmp_path / "out", Settings(), {})
    for name in names:
        shutil.copytree(tmp_path / "out", tmp_path / name)
    shutil.rmtree(tmp_path / "out")
    request = StageRequest.of("numbers", Settings(), {}, seed=0)
    before = tree(tmp_path)
    assert artifact.staleness(tmp_path / "out", request) is None
    other = StageRequest.of("numbers", Settings(), {}, seed=1)
    with pytest.raises(Refused, match="made with other settings"):
        artifact.staleness(tmp_path / "out", other)
    assert tree(tmp_path) == before
    assert finish(request, tmp_path / "out")  # there is a name to be given
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    before = tree(tmp_path)
    assert finish(request, tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_large_file_that_changed_within_its_time_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(settings, inputs, run):
        (run.folder / "rows.bin").write_bytes(b"a" * (2 << 20))
        return {}

    out, request = tmp_path / "out", StageRequest.of("numbers", Settings(), {}, seed=0)
    execute(write, request, Settings(), out, device="cpu", dtype="fp32")
    stat = (out / "rows.bin").stat()
    hashes.hash_file(artifact.verified(out / "rows.bin"))
    (out / "rows.bin").write_bytes(b"b" * (2 << 20))
    os.utime(out / "rows.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match="changed since it was made"):
        artifact.verified(out / "rows.bin")
