"""Each of the 25 instructions: answers that follow it, and answers that do not, worked by hand."""

from typing import Any

import pytest

from fretsaw.grade.instructions.grade import judge
from fretsaw.grade.instructions.kinds import INSTRUCTIONS

PERSIAN = "امروز هوا خیلی خوب است و ما به پارک می‌رویم تا با دوستانمان بازی کنیم."
ENGLISH = "The weather is very nice today and we are going to the park with our friends."

# (id, arguments, answers that follow it, answers that do not)
ROWS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["cat", "C++"]},
        ["A Cat wrote C++.", "C++ (cat)"],
        ["A cat wrote C.", "Education in C++", "cats know C++"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "at least"},
        ["War and war", "war, war, war"],
        ["war", "a warm reward and war"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "less than"},
        ["peace", "war", "reward and warm war"],
        ["war war"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rich", "C++"]},
        ["Richard knows C.", "enriched"],
        ["They are RICH.", "I write C++ here"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        ["Quick quiz", "qq"],
        ["quick", "none"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        ["Stop!", "aaaa"],
        ["Stop!!"],
    ),
    ("language:response_language", {"language": "fa"}, [PERSIAN], [ENGLISH, "12 + 3"]),
    (
        "language:response_language",
        {"language": "zh"},
        ["今天天气很好，我们和朋友一起去公园玩，大家都很高兴。"],
        [ENGLISH],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        [
            "One. Two! Three?",
            "Mr. Roe left. He ran. It was 3.50 a mile",
            "I said no. See no. 5. Go",
            "1. A dog.\n2. A cat.\n3. A.",
        ],
        [
            "Mr. Roe met Dr. Doe at 3.5 km. He ran",
            "See no. 5 and p. 3. Go",
            "1. A dog.\n2. A cat.",
            "One, e.g. two. Three",
        ],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["Just one here", "Wait... what", "J. R. Ewing came."],
        ["One. Two."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n\n***\n\nb\n***", "a *** b", "a ***bold*** a\n***\nb"],
        ["a\n\nb", "a\n***\n***\nb", "a\n***\nb\n***\nc", "a ***bold*** b c"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["I don't know", "one-two three"],
        ["I don't", "don't can't", "one, two..."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["I don't", "two words"],
        ["one two three"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        ["a\n\nElm trees", 'a\n\n"Elm," he said', "a\n\n\n\n**elm** trees", "a\n \nelm"],
        ["a\n\nOak trees", "Elm\n\na", "a\n\nelm\n\nc", "a\n\nelmwood", "elm"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] of [address]", "[[a]] and [b]"],
        ["[name]", "[name] and [link](http://a.b)", "[name] [ ] [x]", "[na\nme] [b]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\n\nP.S. Write soon.", "Bye. p. s. Write", "**P.S.** Write"],
        ["Bye.", "I sent it by U.S.P.S. today", "Bye. P.S.", "Bye.\nP.P.S. Write"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Write soon", "Bye.\nP. P. S: write", "P.P.S Write"],
        ["Bye.\nP.S. Write soon", "P.P.S."],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "Here:\n - a\n + b\n---\nEnd", "* a\n* b\n*now* we go"],
        ["* a", "- a\n- b\n- c", "*a\n*b", "-5\n-6"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is no.", "  My answer is maybe. \n"],
        ["No.", "my answer is no", "My answer is yes. My answer is no."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and **b c**", "***a*** *b*"],
        ["*a* b", "***a***", "* one * two * three", "2*3*4*5", "** ** * *", "*a\nb* *c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "## Section 1\n**Section 2**"],
        ["Section 1\nas in Section 2", "SECTION 1\nSECTION 2", "Section A\nSection B"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1]}', '```json\n{"a": 1}\n```', "[]", '```\n["a"]\n```'],
        ["3", '"a"', "NaN", "[NaN]", '{"a": 1} and more', "{'a': 1}", "[" * 5000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<A poem>>\nText", "Text <<<a>>> more"],
        ["<A poem>", "<<>>", "<< >>", "<<a\nb>>", ">>a<<", "<<>"],
    ),
    (
        "combination:two_responses",
        {},
        ["one******two", "******\none\n******\ntwo\n******"],
        ["one", "one******one", "a******b******c", "a************b", "a***b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Name a dog."},
        ["Name a dog. Rex", "  NAME A DOG.\n\nRex"],
        ["Rex. Name a dog.", "Name a dog.", "Name the dog. Rex"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ["Well. That is all.", '"Well. that is all."', "**That is all.**", "“That is all.”\n"],
        ["That is all. Bye.", "That is"],
    ),
    (
        "startend:quotation",
        {},
        ['"a"', ' "a "b" c"\n', "“a”"],
        ['"', "'a'", '"a', 'a "b"', "“a"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["STOP right NOW.", "I CAN'T", "WELL-KNOWN ABC1"],
        ["STOP", "CAN'T", "Stop Now", "WELL-KNOWN"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["STOP", "CANNOT", "no"],
        ["STOP NOW"],
    ),
    (
        "change_case:english_capital",
        {},
        [ENGLISH.upper()],
        [ENGLISH, "LE TEMPS EST TRÈS BEAU AUJOURD'HUI ET NOUS ALLONS AU PARC.", "12"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [ENGLISH.lower()],
        [ENGLISH, "le temps est très beau aujourd'hui et nous allons au parc.", "12"],
    ),
    ("punctuation:no_comma", {}, ["a; b.", "1.000"], ["a, b", "1,000", "好，的"]),
]


def verdict(id: str, kwargs: dict[str, Any], answer: str, rules: str = "repaired") -> bool:
    expected = {"instruction_id_list": [id], "kwargs": [kwargs], "rules": rules}
    return judge(answer, expected)[0].strict


def test_every_instruction_has_its_rows() -> None:
    assert len(INSTRUCTIONS) == 25
    assert {id for id, *_ in ROWS} == set(INSTRUCTIONS)


@pytest.mark.parametrize(("id", "kwargs", "right", "wrong"), ROWS)
def test_answers_that_follow_it_and_that_do_not(
    id: str, kwargs: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [answer for answer in right if not verdict(id, kwargs, answer)] == []
    assert [answer for answer in wrong if verdict(id, kwargs, answer)] == []


# (id, arguments, answer, what the reference says of it; the repaired rules say the contrary)
DEFECTS: list[tuple[str, dict[str, Any], str, bool]] = [
    ("keywords:existence", {"keywords": ["cat"]}, "education", True),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 1, "relation": "at least"},
        "warm",
        True,
    ),
    ("language:response_language", {"language": "fa"}, "12 + 3", True),
    (
        "length_constraints:number_words",
        {"num_words": 2, "relation": "at least"},
        "don't",
        True,
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "1. A dog.",
        True,
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, "a ***b*** c", True),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        "a\n\n\n\nelm",
        False,
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[ ]", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "by U.S.P.S.", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "*now*\n---", True),
    (
        "detectable_format:constrained_response",
        {},
        "My answer is yes. My answer is no.",
        True,
    ),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "***a***", True),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 1},
        "see Section 1",
        True,
    ),
    ("detectable_format:json_format", {}, "NaN", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "A dog."}, "A dog.", True),
    ("startend:end_checker", {"end_phrase": "Bye."}, "**Bye.**", False),
    ("startend:quotation", {}, "“a”", False),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "CAN'T",
        True,
    ),
    ("punctuation:no_comma", {}, "好，的", True),
]


@pytest.mark.parametrize(("id", "kwargs", "answer", "reference"), DEFECTS)
def test_the_reference_keeps_its_defects(
    id: str, kwargs: dict[str, Any], answer: str, reference: bool
) -> None:
    assert verdict(id, kwargs, answer, "reference") is reference
    assert verdict(id, kwargs, answer, "repaired") is not reference
