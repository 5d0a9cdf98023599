"""Long texts: as long as asked, with what is asked for in them, and graded by what is found."""

import pytest

from fretsaw.grade.grader import grade_batch
from fretsaw.tasks.long_context import KINDS, make_problem
from fretsaw.tasks.task import load_problems


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_words", [200, 3000])
def test_a_text_is_as_long_as_asked_and_holds_its_answer(kind, num_words: int) -> None:
    problem = make_problem(kind, num_words, "0", "p")
    text, _, question = problem.messages[0].content.rpartition("\n\n")
    assert abs(len(text.split()) - num_words) <= 0.2 * num_words + 120
    wanted = problem.expected["words"]
    assert all(word in text for word in wanted)
    assert question.endswith(("?", "them."))
    answers = ["It is " + ", ".join(wanted), wanted[0], "1234", ""]
    grades = grade_batch("recall", [(answer, problem.expected) for answer in answers])
    scores = [1.0, 1 / len(wanted), 0.0, 0.0]
    assert [grade.score for grade in grades] == pytest.approx(scores)


def test_frequent_words_stand_twice_as_often_and_a_chain_ends_where_it_is_said() -> None:
    problem = make_problem("words", 2000, "0", "p")
    words = (
        problem.messages[0].content.split("\n\n")[0].removeprefix("List: ").rstrip(".").split(", ")
    )
    counts = sorted({words.count(word) for word in words})
    assert counts[1] == 2 * counts[0]
    assert all(words.count(word) == counts[1] for word in problem.expected["words"])
    chained = make_problem("variables", 500, "0", "p")
    text, _, question = chained.messages[0].content.rpartition("\n\n")
    values: dict[str, str] = {}
    for line in text.split("Let ")[1:]:
        name, value = line.split(".")[0].split(" = ")
        values[name] = values.get(value, value)
    asked = question.split("value ")[1].split("?")[0]
    holding = {name for name, value in values.items() if value == asked}
    assert holding == {*chained.expected["words"]}


def test_options_are_read_and_problems_differ_by_seed() -> None:
    first = load_problems("long_context:words=300", 10, seed=0)
    assert first == load_problems("long_context:words=300", 10, seed=0)
    assert first != load_problems("long_context:words=300", 10, seed=1)
    assert [problem.kind for problem in first] == [*KINDS, *KINDS]
    assert {p.kind for p in load_problems("long_context:kind=needle", 3, seed=0)} == {"needle"}
    for task, said in (
        ("long_context:words=many", "words is a number"),
        ("long_context:words=3", "words is 3; lies in 100 to 1000000"),
        ("long_context:kind=hay", "kind is one of needle, needles, values, variables, words"),
    ):
        with pytest.raises(ValueError, match=said):
            load_problems(task, 1, seed=0)
