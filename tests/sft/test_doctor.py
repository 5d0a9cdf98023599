"""The doctor: each fault put in gives its name and exit code, healthy rows give none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import foreign
import pytest
from support import answer_row, stage_run

from fretsaw.chat.renderer import Span
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.cli import main
from fretsaw.rollout.rows import write_rows
from fretsaw.sft import doctor
from fretsaw.sft.doctor import findings_of, findings_of_rollouts
from fretsaw.sft.lesson import Lesson, read_lesson
from fretsaw.sft.settings import SftSettings
from fretsaw.sft.train import tune

SETTINGS = SftSettings(
    seq_len=256, batch_tokens=512, micro_batch_tokens=256, heldout_share=0.0, too_long="skip"
)
WORKED = "<think>\none more\n</think>\n\n2"


@pytest.fixture(scope="module")
def chat(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    world = replace(SETTINGS, source="world", num_rows=8)
    tune(world, {"model": tiny / "parent"}, stage_run(folder))
    return folder


def row(answer: str = "2", mode: str = "off", question: str = "1 + 1?", **more: object) -> dict:
    asked, answered = {"role": "user", "content": question}, {"role": "assistant"}
    return {"messages": [asked, {**answered, "content": answer, **more}], "mode": mode}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


BOTH = (row(), row(WORKED, "on"))


def lesson_of(model: Path, tmp_path: Path, *rows: dict, **settings) -> Lesson:
    data = write(tmp_path / "a.jsonl", *(rows or BOTH))
    return read_lesson(replace(SETTINGS, **settings), {"model": model, "data": data}, 0)


def names(lesson: Lesson, parent: Path | None = None) -> list[str]:
    return [f"{one.severity}: {one.name}" for one in findings_of(lesson, parent)]


def test_healthy_rows_have_no_fault(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(lesson_of(chat, tmp_path), parent=chat) == []
    data = str(tmp_path / "a.jsonl")
    assert main(["doctor", str(chat), "--data", data, "--seq-len", "256"]) == 0
    told = capsys.readouterr().out
    assert told.endswith("no fault found\n")
    assert ">t> <·" in told or ">t> <think" in told
    assert main(["doctor", str(chat)]) == 0
    assert "generated problem" in capsys.readouterr().out
    assert main(["doctor", "--data", data]) == 0
    assert "1 conversations of messages, reasoning on" in capsys.readouterr().out


def test_the_page_has_every_token_once_in_its_colour(chat: Path, tmp_path: Path) -> None:
    call = {"name": "add", "arguments": {"a": 1}}
    calling = {**row("so", tool_calls=[call]), "tools": [{"name": "add"}]}
    lesson = lesson_of(chat, tmp_path, row(WORKED, "on", "<b>&?"), calling)
    page = tmp_path / "page.html"
    data, size = str(tmp_path / "a.jsonl"), ["--seq-len", "256"]
    assert main(["doctor", str(chat), "--data", data, "--html", str(page), *size]) == 0
    text = page.read_text()
    num_tokens = sum(len(example.token_ids) for example in lesson.examples)
    assert text.count(" title=") == num_tokens
    for kind, counted in (("thinking", "num_thinking"), ("calls", "num_calls")):
        expected = sum(getattr(example, counted) for example in lesson.examples)
        assert text.count(f'<span class="{kind}" title') == expected > 0
    assert "<b>" not in text
    assert main(["doctor", str(chat), "--data", data, "--html", str(page), *size]) == 2


def code_of(*arguments: object) -> int:
    try:
        return main(["doctor", *map(str, arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)


def refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *rows: dict) -> str:
    data = write(tmp_path / "a.jsonl", *(rows or BOTH))
    assert code_of(model, "--data", data, "--seq-len", 256) == 2
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("turn.content +", "(turn.content.split('</think>')|last) +", "leaves out the reasoning"),
        ("assistant\n", "model\n", "otherwise than after the text that asks for it"),
        ("<|im_end|>", "", "no end could be learnt"),
    ],
)
def test_a_template_that_spoils_answers_is_named(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before, after, said
) -> None:
    """The trace is lost, the prompt is another one than in training, no token ends a turn."""
    folder = tmp_path / "model"
    shutil.copytree(chat, folder)
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    model = checkpoint.load(folder)
    checkpoint.write(model.with_vocab(tokenizer.vocab_size, (1,)), folder, tokenizer=tokenizer)
    assert before in foreign.CHATML
    (folder / "chat_template.jinja").write_text(foreign.CHATML.replace(before, after))
    assert said in refused(folder, tmp_path, capsys)


def altered(lesson: Lesson, **changes: object) -> Lesson:
    """Return the lesson with something of its second conversation, the worked one, changed."""
    first, (record, example) = lesson.train
    return replace(lesson, train=[first, (record, replace(example, **changes))])


def test_an_end_that_is_not_learnt_is_named(chat: Path, tmp_path: Path) -> None:
    lesson = lesson_of(chat, tmp_path)
    mask = (*lesson.examples[1].loss_mask[:-1], False)
    assert names(altered(lesson, loss_mask=mask)) == ["error: end-not-learnt"]


def test_what_is_lost_of_an_answer_is_named(chat: Path, tmp_path: Path) -> None:
    lesson = lesson_of(chat, tmp_path)
    assert names(altered(lesson, num_thinking=0)) == ["error: thinking-lost"]
    call = {"name": "add", "arguments": {}}
    calling = {**row("", tool_calls=[call]), "tools": [{"name": "add"}]}
    lesson = lesson_of(chat, tmp_path, row(WORKED, "on"), calling)
    assert names(lesson) == []
    assert names(altered(lesson, num_calls=0)) == ["error: call-not-learnt"]


def test_a_prompt_that_is_another_in_a_chat_is_named(chat: Path, tmp_path: Path) -> None:
    lesson = lesson_of(chat, tmp_path)
    ids = list(lesson.examples[1].token_ids)
    ids[2] += 1
    found = names(altered(lesson, token_ids=tuple(ids)))
    assert found == ["error: template-does-not-round-trip"]


def test_the_share_that_is_too_long_is_told(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = row(question="long " * 300)
    few = lesson_of(chat, tmp_path, *BOTH * 6, long)
    assert names(few) == ["warning: too-long"]
    assert "1 of 13 conversations (7.7%) are longer than 256" in str(findings_of(few)[0])
    assert names(lesson_of(chat, tmp_path, *BOTH, long)) == ["error: too-long"]
    assert "error: too-long" in refused(chat, tmp_path, capsys, *BOTH, long)


def test_one_mode_alone_is_a_warning(chat: Path, tmp_path: Path) -> None:
    assert names(lesson_of(chat, tmp_path, row())) == ["warning: one-mode"]


def test_a_batch_that_does_not_fit_is_named(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine with 1 MiB free."""
    monkeypatch.setattr(doctor, "free_bytes", lambda: float(1 << 20))
    [finding] = findings_of(lesson_of(chat, tmp_path))
    assert (finding.severity, finding.name) == ("error", "memory")
    assert "256 tokens in float32" in finding.text


def test_digits_that_are_cut_otherwise_are_named(chat: Path, tmp_path: Path) -> None:
    """Whole numbers as tokens of their own, as some tokenizers have them."""
    other = tmp_path / "parent"
    shutil.copytree(chat, other)
    path = other / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["added_tokens"].append(
        {**raw["added_tokens"][0], "id": len(raw["model"]["vocab"]) + 3, "content": "365"}
        | {"special": False, "normalized": False}
    )
    path.write_text(json.dumps(raw))
    lesson = lesson_of(chat, tmp_path)
    assert names(lesson, parent=other) == ["error: digits-split-otherwise"]
    assert "cuts 365 as 3|6|5, its parent's as 365" in str(findings_of(lesson, other)[0])


def test_rewards_that_are_all_alike_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = [answer_row(i // 4, "on", "2", reward=float(i // 4 % 2)) for i in range(16)]
    mixed = [replace(one, reward=float(i % 2)) for i, one in enumerate(alike)]
    assert [one.name for one in findings_of_rollouts(alike)] == ["constant-reward"]
    assert findings_of_rollouts(mixed) == []
    most = [*alike[:12], *mixed[12:]]
    assert [str(one)[:24] for one in findings_of_rollouts(most)] == ["warning: constant-reward"]
    cut = [replace(one, is_finished=False) for one in mixed]
    assert [one.name for one in findings_of_rollouts(cut)] == ["answers-truncated"]
    (tmp_path / "rollouts").mkdir()
    for name, rows, code in (("000.parquet", alike, 2), ("001.parquet", mixed, 0)):
        write_rows(tmp_path / "rollouts" / name, rows)
        assert code_of(tmp_path) == code
    told = capsys.readouterr().out
    assert "error: constant-reward: in 4 of 4 groups" in told
    assert told.endswith("no fault found\n")


def test_a_row_that_cannot_be_learnt_is_named_with_its_line(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a.jsonl, line 2: mode on, but its answer is malformed" in refused(
        chat, tmp_path, capsys, row(), row("2", "on")
    )
    assert main(["doctor"]) == 2
    assert "nothing to look at" in capsys.readouterr().err


def test_the_kinds_of_a_span_are_those_of_its_tokens() -> None:
    assert Span("user", (1, 2)).kinds == ("prompt", "prompt")
    kinds = ("thinking", "answer", "calls", "calls", "answer")
    assert Span("assistant", (1, 2, 3, 4, 5), True, 1, 2).kinds == kinds
