"""Word problems as a task: its prompts, its grades, and where the text is cut."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fretsaw.data import world
from fretsaw.tasks.word_problems import WordProblems, accuracy_interval

MODES = ("on", "off")


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE with digits split, trained on the world's own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|begin_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world.documents(0, "train", 1000), trainer)
    return tokenizer


def continuation(task, index):
    return world.problem_completion(task.problems[index], mode=task.mode)


def test_problems_are_held_out_different_and_a_function_of_the_seed():
    task = WordProblems(200, seed=3)
    assert task.problems == WordProblems(200, seed=3).problems
    assert task.problems[:50] == WordProblems(50, seed=3).problems
    assert task.problems != WordProblems(200, seed=4).problems
    assert len(set(task.prompts())) == 200
    assert [task.num_steps(index) for index in range(6)] == [2, 3, 4, 5, 2, 3]
    for problem in task.problems:
        assert world.split_of("; ".join(problem.steps)) == "heldout"


def test_few_short_chains_still_give_different_problems():
    assert len(set(WordProblems(500, seed=0, steps=(1,)).prompts())) == 500


@pytest.mark.parametrize("mode", MODES)
def test_prompt_and_continuation_are_the_training_text(mode):
    task = WordProblems(40, seed=0, mode=mode)
    for index, prompt in enumerate(task.prompts()):
        text = world.problem_text(task.problems[index], mode=mode)
        assert prompt + continuation(task, index) == text
        assert (world.OPEN_TAG in prompt) == (mode == "on")


@pytest.mark.parametrize("mode", MODES)
def test_the_cut_is_a_token_boundary(tokenizer, mode):
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    task = WordProblems(100, seed=0, mode=mode)
    for index, prompt in enumerate(task.prompts()):
        rest = continuation(task, index)
        assert encode(prompt) + encode(rest) == encode(prompt + rest)


def test_the_off_prompt_rules_out_an_opening_tag(tokenizer):
    [problem] = WordProblems(1, seed=0).problems
    off = tokenizer.encode(world.problem_prompt(problem, mode="off")).ids
    worked = tokenizer.encode(world.problem_text(problem, mode="on")).ids
    assert worked[: len(off)] != off


@pytest.mark.parametrize("phrasing", ["train", "heldout"])
@pytest.mark.parametrize("mode", MODES)
def test_the_right_continuation_grades_1_and_a_wrong_one_0(mode, phrasing):
    task = WordProblems(40, seed=0, mode=mode, phrasing=phrasing)
    for index, problem in enumerate(task.problems):
        right = continuation(task, index)
        wrong = right.removesuffix(problem.answer) + str((int(problem.answer) + 1) % 100)
        assert task.grade(index, right) == 1.0
        assert task.grade(index, right + "\n") == 1.0
        assert task.grade(index, wrong) == 0.0
        assert task.grade(index, "") == 0.0


def test_only_what_follows_the_closing_tag_is_graded():
    on, off = WordProblems(1, seed=0), WordProblems(1, seed=0, mode="off")
    answer = on.problems[0].answer
    assert on.grade(0, f"1 + 1 = 2\n</think>\n\nThe answer is {answer}.") == 1.0
    assert on.grade(0, answer) == 0.0  # never closed, so no answer
    assert on.grade(0, f"{answer}\n</think>\n\n") == 0.0
    assert on.grade(0, f"</think>{answer}</think> 1000") == 0.0
    assert on.grade(0, f"</think>\n\n-{answer}") == 0.0
    assert on.grade(0, f"</think>\n\n0{answer}") == 0.0
    assert off.grade(0, f"<think>\n{answer}") == 0.0
    assert off.grade(0, f"<think>\n1\n</think>\n\n{answer}") == 1.0


def test_a_task_without_problems_is_refused():
    with pytest.raises(ValueError, match=r"0 problems .* give at least one problem"):
        WordProblems(0, seed=0)
    with pytest.raises(ValueError, match=r"steps \(\); give at least"):
        WordProblems(1, seed=0, steps=())


def test_accuracy_interval():
    # Wilson, by hand for 8 of 10: (0.8 + 0.19208 -+ 1.96 sqrt(0.016 + 0.009604)) / 1.38416,
    # where z^2/2n = 0.19208, z^2/4n^2 = 0.009604 and the root is 0.160012.
    assert accuracy_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert accuracy_interval(0, 20)[0] == 0.0
    assert accuracy_interval(20, 20)[1] == pytest.approx(1.0)
    low, high = accuracy_interval(500, 1000)
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 1000) ** 0.5, rel=5e-3)
    with pytest.raises(AssertionError, match="no grades"):
        accuracy_interval(0, 0)
