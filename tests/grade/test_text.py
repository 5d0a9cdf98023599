from fretsaw.grade.grader import Grade
from fretsaw.grade.text import grade_contains, grade_exact


def test_exact_ignores_case_spaces_and_a_full_stop():
    assert grade_exact("  The  Red box.", {"answer": "the red box"}).score == 1.0
    assert grade_exact("the red box now", {"answer": "the red box"}).score == 0.0


def test_contains_wants_whole_words():
    assert grade_contains("A cat sat.", {"answer": "cat"}) == Grade(1.0, "cat")
    assert grade_contains("The Cat's hat", {"answer": "cat"}).score == 1.0
    assert grade_contains("A catalogue", {"answer": "cat"}) == Grade(0.0, "")
    assert grade_contains("a big  red\nball", {"answer": "red ball"}).score == 1.0
