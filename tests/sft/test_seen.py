"""Several files: how often their rows are seen, what is counted of it, and what a step averages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import stage_run

from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.cli import main
from fretsaw.data import loader
from fretsaw.data.pack import pack
from fretsaw.data.world import conversations
from fretsaw.sft.examples import Example, encode, micro_batches, weighted
from fretsaw.sft.seen import count_seen
from fretsaw.sft.settings import Average, SftSettings
from fretsaw.sft.train import add_gradient, tune
from fretsaw.training.settings import UpdateSettings

SETTINGS = SftSettings(
    seq_len=128, batch_tokens=256, micro_batch_tokens=128, heldout_share=0.0, epochs=2
)


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def row(question: str, answer: str, mode: str = "off") -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "mode": mode}


def example(source: str, size: int) -> Example:
    return Example((1,) * size, (False,) + (True,) * (size - 1), "off", source)


def test_a_file_is_seen_as_often_as_its_weight_says() -> None:
    examples = [*(example("a", n) for n in range(2, 12)), example("b", 40), example("c", 50)]
    seen = weighted(examples, {"a": 0.25, "b": 2.0, "c": 1.5}, seed=0)
    assert [sum(e.source == s for e in seen) for s in "abc"] == [3, 2, 2]  # 2.5 is rounded up
    assert len({len(e.token_ids) for e in seen if e.source == "a"}) == 3  # no row twice
    assert seen == weighted(examples, {"a": 0.25, "b": 2.0, "c": 1.5}, seed=0)
    others = {tuple(weighted(examples, {"a": 0.3}, seed)) for seed in range(5)}
    assert len(others) > 1
    assert weighted(examples, {}, seed=0) == examples


def test_what_is_seen_is_counted_step_by_step() -> None:
    examples = [example("ab"[n % 2], n) for n in range(2, 16)]
    rows = pack([len(e.token_ids) for e in examples], 20)
    per_step, num_steps = 3, 5  # more than one epoch, and no whole number of them
    counted = count_seen(examples, rows, per_step, num_steps, seed=3)
    by_hand = {source: {"rows": 0, "tokens": 0, "learnt": 0} for source in "ab"}
    for step in range(num_steps):
        for number in loader.order(len(rows), per_step, seed=3, step=step):
            for i in rows[number]:
                own = by_hand[examples[i].source]
                own["rows"] += 1
                own["tokens"] += len(examples[i].token_ids)
                own["learnt"] += len(examples[i].token_ids) - 1
    assert counted == {source: {"off": own} for source, own in by_hand.items()}


def test_the_table_is_told_and_noted(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of one name in two folders are two sources."""
    first = write(tmp_path / "x" / "a.jsonl", *(row(f"{i}?", "yes") for i in range(4)))
    second = write(tmp_path / "y" / "a.jsonl", row("why?", "<think>\nhm\n</think>\n\nso", "on"))
    inputs = {"model": tiny / "parent", "data": first, "data1": second}
    settings = replace(SETTINGS, weights=(0.5, 3.0))
    seen = tune(settings, inputs, stage_run(tmp_path / "out"))["seen"]
    assert list(seen) == ["a.jsonl", "a.jsonl (data1)"]
    assert seen["a.jsonl"]["off"]["rows"] >= 2 * 2
    assert seen["a.jsonl (data1)"]["on"]["rows"] >= 3 * 2
    assert list(seen["a.jsonl"]) == ["off"]
    told = capsys.readouterr().err
    assert "source" in told
    line = next(line for line in told.splitlines() if "a.jsonl (data1)" in line)
    assert line.split()[3:6] == ["on", *(str(seen["a.jsonl (data1)"]["on"][n]) for n in
                                         ("rows", "tokens"))]  # fmt: skip


def test_weights_are_given_with_the_files(tiny: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", *(row(f"{n} {i}?", "yes") for i in range(4))) for n in
             ("a", "b")]  # fmt: skip
    out = tmp_path / "out"
    common = ["--model", str(tiny / "parent"), "--out", str(out), "--seq-len", "128"]
    data = ["--data", str(files[0]), f"{files[1]}:2"]
    assert main(["sft", *common, *data, "--heldout-share", "0", "--device", "cpu"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["weights"] == [1.0, 2.0]
    seen = manifest["metrics"]["seen"]
    assert seen["b.jsonl"]["off"]["rows"] == 2 * seen["a.jsonl"]["off"]["rows"] == 8
    inputs = {"model": tiny / "parent", "data": files[0], "data1": files[1]}
    with pytest.raises(ValueError, match="weights: 1, but there are 2 data files"):
        tune(replace(SETTINGS, weights=(2.0,)), inputs, stage_run(tmp_path / "few"))


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("micro_rows", [1, 3])
def test_a_step_averages_over_tokens_or_conversations(
    tiny: Path, tmp_path: Path, average: Average, micro_rows: int
) -> None:
    world = replace(SETTINGS, source="world", num_rows=8, epochs=1, seq_len=256)
    tune(world, {"model": tiny / "parent"}, stage_run(tmp_path))
    model, tokenizer = checkpoint.load(tmp_path).double(), Tokenizer.from_folder(tmp_path)
    examples, _ = encode(conversations(0, "train", 9), NemotronFormat(tokenizer), 256, "refuse")
    own_losses = []
    for one in examples:  # each alone, by the plain definition
        ids = torch.tensor(one.token_ids)
        logprobs = model(ids[None, :-1])[0].log_softmax(-1)
        learnt = torch.tensor(one.loss_mask[1:])
        own_losses.append(-logprobs.gather(-1, ids[1:, None])[:, 0][learnt])
    joined = torch.cat(own_losses) if average == "token" else torch.stack(
        [loss.mean() for loss in own_losses]
    )  # fmt: skip
    model.zero_grad()
    joined.mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rows = pack([len(one.token_ids) for one in examples], 256)
    batches = micro_batches(examples, rows, 256, micro_rows)
    metrics = add_gradient(model, batches, "fp32", average=average)
    assert metrics["loss"] == pytest.approx(joined.mean().item(), rel=1e-6)
    assert metrics["targets"] == sum(len(loss) for loss in own_losses)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


def test_the_best_weights_are_kept(tiny: Path, tmp_path: Path) -> None:
    """A rate that is far too high makes it worse, so that the first weights are the best."""
    settings = replace(
        SETTINGS,
        source="world",
        num_rows=40,
        seq_len=256,
        heldout_share=0.2,
        heldout_every=1,
        keep_best=True,
        update=UpdateSettings(learning_rate=3.0, schedule="constant"),
    )
    metrics = tune(settings, {"model": tiny / "parent"}, stage_run(tmp_path))
    for mode in ("on", "off"):
        assert metrics[f"heldout_loss_{mode}"] == metrics[f"before_loss_{mode}"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["heldout_loss_on"] > metrics["before_loss_on"]
    before = checkpoint.load(tiny / "parent").model.layers.state_dict()
    after = checkpoint.load(tmp_path).model.layers.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
