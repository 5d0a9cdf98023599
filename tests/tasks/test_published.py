"""Published sets as they are published: every row is read, and its own answer is right."""

import json
from collections import Counter
from pathlib import Path

import pytest

from fretsaw.grade.grader import grade_batch
from fretsaw.tasks.arithmetic import read_gsm8k, read_svamp
from fretsaw.tasks.choice import read_aqua, read_gpqa, read_mmlu
from fretsaw.tasks.competition import read_aime, read_math
from fretsaw.tasks.problem import Problem


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def scores(problems: list[Problem], answers: list[str]) -> Counter:
    pairs = [(a, problem.expected) for a, problem in zip(answers, problems, strict=True)]
    return Counter(grade.score for grade in grade_batch(problems[0].grader, pairs))


def test_gsm8k_and_the_flags_of_its_model_solutions(data_folder: Path) -> None:
    """2,640 solutions of four models: the grader says what the set's authors say."""
    folder = data_folder / "gsm8k"
    problems = read_gsm8k(folder / "test_lines_0001-0660.jsonl")
    assert len(problems) == 660
    solved = (folder / "example_model_solutions_lines_0001-0660.jsonl").read_text().splitlines()
    differ = []
    for problem, line in zip(problems, solved, strict=True):
        row = json.loads(line)
        assert row["question"] == problem.messages[0].content
        for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            text, is_correct = row[name]["solution"], row[name]["is_correct"]
            (grade,) = grade_batch("number", [(text, problem.expected)])
            if bool(grade.score) != is_correct:
                differ.append((problem.id, name, grade.evidence, problem.answer))
    assert len(differ) == 0


def test_svamp_aqua_and_math_are_read_whole(data_folder: Path) -> None:
    folder = data_folder
    svamp = read_svamp(folder / "svamp/test.jsonl")
    assert scores(svamp, [f"It is {p.answer}." for p in svamp]) == {1.0: len(svamp)}
    aqua = read_aqua(folder / "aqua/test.jsonl")
    assert len(aqua) == 254
    assert "A car is being driven" in aqua[0].messages[0].content
    assert "\nE. None of these\n" in aqua[0].messages[0].content
    assert scores(aqua, [f"so \\boxed{{{p.answer}}}" for p in aqua]) == {1.0: 254}
    texts = [p.expected["choices"][p.answer] for p in aqua]
    assert scores(aqua, texts)[1.0] >= 250  # a few texts hold another, or begin as a letter does
    math = read_math(folder / "math/math500_lines_001-300.jsonl")
    rows = (folder / "math/math500_lines_001-300.jsonl").read_text().splitlines()
    assert scores(math, [json.loads(row)["solution"] for row in rows]) == {1.0: 300}
    assert {p.kind for p in math} == {f"level {n}" for n in range(1, 6)}


def test_gpqa_keeps_one_order_and_mmlu_reads_letters_and_places(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    rows = [{"Question": f"q{i}", "Correct Answer": "right", **wrong} for i in range(40)]
    problems = read_gpqa(write(tmp_path / "gpqa.jsonl", *rows))
    assert problems == read_gpqa(tmp_path / "gpqa.jsonl")
    letters = Counter(problem.answer for problem in problems)
    assert letters.keys() == set("ABCD")
    assert all(p.expected["choices"][p.answer] == "right" for p in problems)
    assert "should be a single letter A, B, C or D" in problems[0].messages[0].content
    both = [{"question": "q", "choices": ["x", "y"], "answer": answer} for answer in (1, "B")]
    assert [p.answer for p in read_mmlu(write(tmp_path / "mmlu.jsonl", *both))] == ["B", "B"]


def test_aime_reads_numbers_and_texts(tmp_path: Path) -> None:
    rows = [{"problem": "p", "answer": "033"}, {"question": "q", "answer": 7, "id": "x"}]
    problems = read_aime(write(tmp_path / "aime.jsonl", *rows))
    assert scores(problems, ["\\boxed{33}", "\\boxed{7}"]) == {1.0: 2}
    assert [p.id for p in problems] == ["0", "x"]


@pytest.mark.parametrize(
    ("read", "row", "said"),
    [
        (read_gsm8k, {"answer": "#### 1"}, "no field question"),
        (read_gsm8k, {"question": "q", "answer": "72"}, "answer has no '####'"),
        (read_gsm8k, {"question": " ", "answer": "#### 1"}, "question is ' '"),
        (read_svamp, {"Body": "b", "Question": "q", "Answer": None}, "Answer is None"),
        (read_svamp, {"Body": "b", "Question": "q", "Answer": float("nan")}, "not JSON|NaN"),
        (read_aqua, {"question": "q", "options": "A)1", "correct": "A"}, "options is 'A.1'"),
        (read_aqua, {"question": "q", "options": ["A)1", "B)2"], "correct": "C"}, "are A, B"),
        (read_mmlu, {"question": "q", "choices": ["x", "y"], "answer": 2}, "is 2, of 2 choices"),
        (read_mmlu, {"question": "q", "choices": ["x", 3], "answer": 0}, "it is a list of texts"),
        (read_math, {"problem": "p", "solution": "no box"}, "neither an answer nor a solution"),
        (read_gpqa, {"Question": "q", "Correct Answer": "r"}, "no field Incorrect Answer 1"),
        (read_aime, {"problem": "p"}, "no field answer"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_as_published_is_told_with_its_line(read, row, said, tmp_path) -> None:
    with pytest.raises(ValueError, match=said) as error:
        read(write(tmp_path / "set.jsonl", row))
    assert "set.jsonl, line 1" in str(error.value)
