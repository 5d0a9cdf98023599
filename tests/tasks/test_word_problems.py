"""Word problems as a task: its problems, and where the text is cut."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fretsaw.chat.reasoning import MODES, OPEN_TAG
from fretsaw.data import world
from fretsaw.tasks.word_problems import make_problems


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


def test_problems_are_held_out_different_and_a_function_of_the_seed():
    problems = make_problems(200, 3)
    assert problems == make_problems(200, 3)
    assert problems[:50] == make_problems(50, 3)
    assert problems != make_problems(200, 4)
    assert len({problem.messages for problem in problems}) == 200
    assert [p.kind for p in problems[:5]] == ["2 steps", "3 steps", "4 steps", "5 steps", "2 steps"]


def test_few_short_chains_still_give_different_problems():
    assert len({p.messages for p in make_problems(500, 0, steps=(1,))}) == 500


@pytest.mark.parametrize("mode", MODES)
def test_prompt_and_continuation_are_the_training_text(mode):
    for seed in range(40):
        problem = world.make_problem(seed, num_steps=3)
        prompt = world.problem_prompt(problem, mode=mode)
        completion = world.problem_completion(problem, mode=mode)
        assert prompt + completion == world.problem_text(problem, mode=mode)
        assert (OPEN_TAG in prompt) == (mode == "on")


@pytest.mark.parametrize("mode", MODES)
def test_the_cut_is_a_token_boundary(tokenizer, mode):
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    for seed in range(100):
        problem = world.make_problem(seed, num_steps=3)
        prompt = world.problem_prompt(problem, mode=mode)
        rest = world.problem_completion(problem, mode=mode)
        assert encode(prompt) + encode(rest) == encode(prompt + rest)


def test_the_off_prompt_rules_out_an_opening_tag(tokenizer):
    problem = world.make_problem(0, num_steps=3)
    off = tokenizer.encode(world.problem_prompt(problem, mode="off")).ids
    worked = tokenizer.encode(world.problem_text(problem, mode="on")).ids
    assert worked[: len(off)] != off


def test_a_task_without_problems_is_refused():
    with pytest.raises(ValueError, match=r"0 problems .* give at least one problem"):
        make_problems(0, 0)
    with pytest.raises(ValueError, match=r"steps \(\); give at least"):
        make_problems(1, 0, steps=())
