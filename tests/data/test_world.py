"""The generated world: deterministic, disjoint, and right."""

import itertools
import operator
import re

import pytest

from fretsaw.data import world

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def problems(count: int, split: world.Split = "train", phrasing: world.Phrasing = "train"):
    return [
        world.make_problem(seed, num_steps=seed % 6 + 1, split=split, phrasing=phrasing)
        for seed in range(count)
    ]


def stories(count: int, split: world.Split = "train"):
    return [world.make_story(seed, split) for seed in range(count)]


def test_a_document_is_a_function_of_its_seed():
    again = list(world.documents(7, "train", 200))
    assert list(world.documents(7, "train", 200)) == again
    assert list(world.documents(7, "train", 50)) == again[:50]
    assert list(itertools.islice(world.documents(7, "train"), 200)) == again
    assert list(world.documents(8, "train", 200)) != again
    # Pinned: a change of the generator is a change of every corpus made with it.
    assert world.make_problem(0, num_steps=2).steps == ("2 / 2 = 1", "1 * 3 = 3")


def test_documents_are_the_stated_mix():
    texts = list(world.documents(0, "train", 4000))
    problems = [text for text in texts if text.startswith("Question: ")]
    worked = [text for text in problems if world.OPEN_TAG in text]
    assert len(problems) / len(texts) == pytest.approx(0.85, abs=0.03)
    assert len(worked) / len(problems) == pytest.approx(0.6, abs=0.04)


def test_no_heldout_chain_or_story_is_trained_on():
    trained = set(world.documents(1, "train", 8000))
    heldout = set(world.documents(1, "heldout", 3000))
    assert not trained & heldout
    chains = {problem.steps for problem in problems(5000)}
    assert not chains & {problem.steps for problem in problems(3000, "heldout")}
    assert not chains & {problem.steps for problem in problems(3000, "heldout", "heldout")}


@pytest.mark.parametrize("phrasing", ["train", "heldout"])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_step_is_right_and_the_chain_ends_in_the_answer(split, phrasing):
    for problem in problems(1500, split, phrasing):
        value = int(re.findall(r"\d+", problem.question)[0])
        assert len(problem.steps) == problem.num_steps
        for step in problem.steps:
            match = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step)
            assert match, step
            left, right, result = int(match[1]), int(match[3]), int(match[4])
            assert left == value
            assert OPERATIONS[match[2]](left, right) == result
            assert match[2] != "/" or left % right == 0
            assert 0 <= result <= 30
            value = result
        assert problem.answer == str(value)


# How a reader understands each sentence, reserved phrasings included.
MEANING = [
    (r"(?:He|She) (?:buys|finds) (\d+) more\.|Then (\d+) more are found\.", "+"),
    (r"(?:He|She) (?:gives away|loses) (\d+)(?: of them)?\.|Then (\d+) of them are gone\.", "-"),
    (r".*(?:twice as many|finds as many again)\.", "* 2"),
    (r".*three times as many\.", "* 3"),
    (r".*(?:gives away half of them|loses half|half of them are gone)\.", "/ 2"),
]


@pytest.mark.parametrize("phrasing", ["train", "heldout"])
def test_the_question_says_what_the_steps_do(phrasing):
    for problem in problems(600, "train", phrasing):
        _, *events, _ = re.findall(r"[^.?]+[.?]", problem.question)
        for event, step in zip(events, problem.steps, strict=True):
            event = event.strip()
            said = [
                f"{sign} {next(filter(None, match.groups()), '')}".strip()
                for pattern, sign in MEANING
                if (match := re.fullmatch(pattern, event))
            ]
            assert len(said) == 1, event
            assert f" {said[0]} = " in step


def test_reserved_phrasings_are_never_in_training_text():
    reserved = {templates[-1] for templates in world.TEMPLATES.values()}
    usual = {template for templates in world.TEMPLATES.values() for template in templates[:-1]}
    assert not reserved & usual
    text = "\n".join(world.documents(0, "train", 3000))
    for fragment in ("are found", "are gone", "as many again", "there are three"):
        assert fragment not in text
    assert all(len(templates) >= 3 for templates in world.TEMPLATES.values())


def test_problem_text_has_the_agreed_layout():
    problem = world.WordProblem(
        "How many?", ("12 + 7 = 19", "19 - 4 = 15"), "15", 2, "word_problem"
    )
    assert world.problem_text(problem, mode="off") == "Question: How many?\nAnswer: 15"
    assert world.problem_text(problem, mode="on") == (
        "Question: How many?\nAnswer: <think>\n12 + 7 = 19\n19 - 4 = 15\n</think>\n\n15"
    )
    other = world.problem_text(problem, mode="on", open_tag="[", close_tag="]")
    assert other == "Question: How many?\nAnswer: [\n12 + 7 = 19\n19 - 4 = 15\n]\n\n15"


def test_a_problem_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"num_steps 0: .* at least one step; give 1 or more"):
        world.make_problem(0, num_steps=0)


def test_stories_are_short_and_end_in_their_answer():
    made = stories(1000)
    assert {story.kind for story in made} == {"carrying", "giving", "moving"}
    assert len({story.sentences for story in made}) > 950
    for story in made:
        assert 5 <= len(story.sentences) <= 8
        assert story.sentences[-1].endswith(f" {story.answer}.")


def retell(sentences: tuple[str, ...]) -> dict[str, str]:
    """Read a story and say where everything is: an independent account of the same world."""
    where: dict[str, str] = {}
    for sentence in sentences:
        words = sentence.rstrip(".").split()
        match words:
            case [a, "and", b, "are", "in", "the", place]:
                where[a] = where[b] = place
            case [a, "takes", "the", thing]:
                where[thing] = a
            case [a, "puts", "down", "the", thing]:
                assert where[thing] == a
                where[thing] = where[a]
            case [a, "goes", "to", "the", place]:
                assert where[a] != place
                where[a] = place
            case [a, "has", "the", thing]:
                where[thing] = a
            case [a, "gives", "the", thing, "to", b]:
                assert where[thing] == a
                where[thing] = b
            case [_, "puts" | "moves", "the", thing, "in" | "to", "the", color, "box"]:
                assert where.get(thing) != color
                where[thing] = color
            case _:
                raise AssertionError(sentence)
    return where


def test_the_last_sentence_of_a_story_follows_from_the_others():
    for story in stories(1500) + stories(500, "heldout"):
        *told, last = story.sentences
        where = retell(tuple(told))
        thing = last.split()[2]
        place = where[thing]
        if story.kind == "carrying" and place in world.PRONOUNS:
            place = where[place]  # with its holder
        told_answer = {"carrying": f"the {place}", "giving": place, "moving": f"the {place} box"}
        assert story.answer == told_answer[story.kind]
