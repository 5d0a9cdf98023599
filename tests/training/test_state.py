"""States: bitwise back, whole or absent, an older one where the newest is damaged."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.training.optimizer import apply_gradients, build_optimizers
from fretsaw.training.settings import LoraSettings, UpdateSettings
from fretsaw.training.state import TrainingState, load_tensors, save_tensors
from fretsaw.training.step_memory import kept_bytes


class Layers(nn.Module):
    """Two matrices, one for Muon by its name, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 4, bias=False), nn.RMSNorm(4)])
        self.head = nn.Linear(4, 3, bias=False)

    def named_parameters(self, *args, **kwargs):
        return [(f"model.{name}", p) for name, p in super().named_parameters(*args, **kwargs)]


def fresh(folder: Path, optimizer: str) -> TrainingState:
    torch.manual_seed(0)
    model = Layers()
    settings = UpdateSettings(optimizer=optimizer)  # type: ignore[arg-type]
    return TrainingState(folder, model, build_optimizers(model, settings))


def advance(state: TrainingState, optimizer: str, num_steps: int) -> None:
    settings = UpdateSettings(optimizer=optimizer)  # type: ignore[arg-type]
    for _ in range(num_steps):
        generator = torch.Generator().manual_seed(state.step)
        model = state.model
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        apply_gradients(model, state.optimizers, settings, step=state.step, num_steps=10)
        state.step += 1


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_state_goes_on_bitwise(tmp_path: Path, optimizer: str) -> None:
    whole = fresh(tmp_path / "a", optimizer)
    advance(whole, optimizer, 6)
    state = fresh(tmp_path / "b", optimizer)
    advance(state, optimizer, 3)
    state.scalars = {"best": 1 / 3}
    state.save()
    resumed = fresh(tmp_path / "b", optimizer)
    assert resumed.resume()
    assert (resumed.step, resumed.scalars) == (3, {"best": 1 / 3})
    advance(resumed, optimizer, 3)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def three_states(folder: Path) -> TrainingState:
    state = fresh(folder, "adamw")
    for _ in range(3):
        advance(state, "adamw", 1)
        state.save()
    return state


def test_the_last_two_states_are_kept(tmp_path: Path) -> None:
    three_states(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["rest.pt", "sums.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_newest_state_gives_way_to_the_one_before(
    tmp_path: Path, name: str, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    three_states(tmp_path)
    damage(tmp_path / "step-00000003" / name)
    state = fresh(tmp_path, "adamw")
    assert state.resume()
    assert state.step == 2
    said = capsys.readouterr().err
    assert f"step-00000003/{name}: " in said
    assert "going back to the state before step-00000003" in said
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    twice = fresh(tmp_path / "other", "adamw")
    advance(twice, "adamw", 2)
    expected = weights(twice)
    assert all(torch.equal(value, expected[name]) for name, value in weights(state).items())


def test_a_state_without_its_best_weights_is_not_whole(tmp_path: Path) -> None:
    state = fresh(tmp_path, "adamw")
    state.save_best()
    for _ in range(3):
        advance(state, "adamw", 1)
        state.save_best()
        state.save()
    names = [f"{kind}-0000000{i}" for kind in ("best", "step") for i in (2, 3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    flip(tmp_path / "best-00000003/__0_0.distcp")
    older = fresh(tmp_path, "adamw")
    assert older.resume()
    assert (older.step, older.best) == (2, "best-00000002")
    before = weights(older)
    advance(older, "adamw", 1)
    older.load_best()
    assert all(torch.equal(value, before[name]) for name, value in weights(older).items())


def test_without_any_whole_state_a_run_starts_or_says_so(tmp_path: Path) -> None:
    assert not fresh(tmp_path, "adamw").resume()
    three_states(tmp_path)
    for folder in tmp_path.glob("step-*"):
        flip(folder / "__0_0.distcp")
    with pytest.raises(ValueError, match=r"step-00000003/__0_0.distcp: .*no saved state is whole"):
        fresh(tmp_path, "adamw").resume()


def as_earlier(folder: Path) -> None:
    """Make a saved folder what it was before there were checksums."""
    (folder / "sums.json").unlink()
    rest = torch.load(folder / "rest.pt", weights_only=True)
    rest.pop("best", None)
    files = (path for path in folder.iterdir() if path.name != "rest.pt")
    rest["sizes"] = {path.name: path.stat().st_size for path in files}
    torch.save(rest, folder / "rest.pt")


def earlier_states(folder: Path) -> TrainingState:
    state = three_states(folder)
    save_tensors(folder / "best", state.model.state_dict())
    for path in folder.iterdir():
        as_earlier(path)
    return state


def test_a_run_of_an_earlier_version_goes_on_without_checksums(tmp_path: Path, capsys) -> None:
    before = weights(earlier_states(tmp_path))
    state = fresh(tmp_path, "adamw")
    assert state.resume()
    assert (state.step, state.best) == (3, "best")
    assert "step-00000003: saved by an earlier version, so it has no checksums" in (
        capsys.readouterr().err
    )
    advance(state, "adamw", 1)
    state.save()
    state.load_best()
    assert all(torch.equal(value, before[name]) for name, value in weights(state).items())
    flip(tmp_path / "step-00000004/__0_0.distcp")
    again = fresh(tmp_path, "adamw")
    assert again.resume()
    assert again.step == 3


@pytest.mark.parametrize("name", ["rest.pt", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"[]")])
def test_of_damaged_states_without_checksums_the_one_before_is_taken(
    tmp_path: Path, name: str, damage, capsys
) -> None:
    earlier_states(tmp_path)
    damage(tmp_path / "step-00000003" / name)
    state = fresh(tmp_path, "adamw")
    try:
        assert state.resume()
    except ValueError as error:
        pytest.fail(f"{error}")
    if state.step == 2:
        assert "going back to the state before step-00000003" in capsys.readouterr().err
    else:  # a changed byte among the weights, which nothing could tell
        assert (state.step, damage) == (3, flip)


def test_a_state_that_cannot_be_written_is_told_and_leaves_the_one_before(tmp_path: Path) -> None:
    """Root may write anywhere, so a file stands where the folder would be."""
    state = three_states(tmp_path)
    advance(state, "adamw", 1)
    (tmp_path / ".step-00000004.tmp").write_text("in the way")
    with pytest.raises(OSError, match="File exists"):
        state.save()
    (tmp_path / ".step-00000004.tmp").unlink()
    again = fresh(tmp_path, "adamw")
    assert again.resume()
    assert again.step == 3


def test_tensors_are_replaced_whole(tmp_path: Path) -> None:
    """What a kill leaves at any moment of a second save can still be read."""
    path, read = tmp_path / "best", torch.zeros(3)
    save_tensors(path, {"x": torch.ones(3)})
    (tmp_path / ".best.tmp").mkdir()  # killed while writing
    save_tensors(path, {"x": torch.full((3,), 2.0)}, step=7)
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    path.rename(tmp_path / ".best.old")  # killed between two names
    load_tensors(path, {"x": read})
    assert read.tolist() == [2.0, 2.0, 2.0]


def test_a_run_keeps_no_more_on_disk_than_is_asked_for(tmp_path: Path) -> None:
    """Where the best weights change three times between states, so that all kinds are there."""
    config = ModelConfig.uniform(
        **{"num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 512},
        **{"vocab_size": 500, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32},
    )
    model, peak = Decoder(config), 0

    class Watched(TrainingState):
        def _drop_old(self) -> None:
            nonlocal peak
            files = (path for path in tmp_path.rglob("*") if path.is_file())
            peak = max(peak, sum(path.stat().st_size for path in files))
            super()._drop_old()

    settings = UpdateSettings()
    state = Watched(tmp_path, model, build_optimizers(model, settings))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for step in range(12):
        apply_gradients(model, state.optimizers, settings, step=step, num_steps=12)
        state.step += 1
        state.save_best()
        if state.step % 3 == 0:
            state.save()
    allowed = kept_bytes(config, settings, LoraSettings(), keeps_best=True)
    assert 0.75 * allowed < peak < 1.05 * allowed
