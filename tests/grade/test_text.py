from fretsaw.grade.text import grade_contains, grade_exact


def test_exact_ignores_case_spaces_and_a_full_stop():
    assert grade_exact("  The  Red box.", "the red box")[0] == 1.0
    assert grade_exact("the red box now", "the red box")[0] == 0.0


def test_contains_wants_whole_words():
    assert grade_contains("A cat sat.", "cat") == (1.0, "cat")
    assert grade_contains("The Cat's hat", "cat")[0] == 1.0
    assert grade_contains("A catalogue", "cat") == (0.0, "")
    assert grade_contains("a big  red\nball", "red ball")[0] == 1.0
