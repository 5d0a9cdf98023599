"""A generator of small, checkable English text: the world the tiny recipe's parent grows up in.

Word problems whose every step of arithmetic is known, and short stories whose last sentence follows
from the earlier ones. Everything is a pure function of an integer seed. The splits are disjoint by
construction: a stable hash puts every chain of arithmetic, and every story, on one side, so no
held-out chain is ever trained on, under any name or phrasing. Names and templates are few, so that
a model of a million parameters with 512 tokens can learn all of it.

A new family of text is one more function here and one more branch in `document`.
"""

import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import CLOSE_TAG, MODES, OPEN_TAG, Mode, with_reasoning
from fretsaw.data.records import Record

Split = Literal["train", "heldout"]
Phrasing = Literal["train", "heldout", "both"]

PROBLEM_SHARE = 0.85  # of documents; the rest are stories
SHARES = ("on", "on", "on", "off", "off")  # how often a problem is worked before the answer
MAX_STEPS = 5  # in a document; `make_problem` takes any number
MAX_VALUE = 30
LEAST_MAX_VALUE = 17  # 8 + 9: from there on every value can go up or down by any operand

PRONOUNS = {
    "Tom": "he", "Ben": "he", "Sam": "he", "Max": "he",
    "Jack": "he", "Paul": "he", "Fred": "he", "Hugo": "he",
    "Ann": "she", "Mia": "she", "Eva": "she", "Lily": "she",
    "Rosa": "she", "Kate": "she", "Nora": "she", "Emma": "she",
}  # fmt: skip
ITEMS = ("apples", "books", "coins", "cards", "eggs", "flowers", "pens", "shells", "stones")
THINGS = ("ball", "book", "coin", "cup", "drum", "hat", "key", "lamp", "ring")
PLACES = ("forest", "garden", "house", "kitchen", "park", "school", "shop", "yard")
COLORS = ("red", "blue", "green", "white")

# The last template of each operation is reserved for phrasing="heldout".
TEMPLATES = {
    "add": ("{He} buys {n} more.", "{He} finds {n} more.", "Then {n} more are found."),
    "subtract": ("{He} gives away {n}.", "{He} loses {n} of them.", "Then {n} of them are gone."),
    "double": (
        "Then {he} has twice as many.",
        "{He} makes it twice as many.",
        "{He} finds as many again.",
    ),
    "halve": ("{He} gives away half of them.", "{He} loses half.", "Then half of them are gone."),
    "triple": (
        "Then {he} has three times as many.",
        "{He} makes it three times as many.",
        "Then there are three times as many.",
    ),
}
WORDINGS = {
    "train": lambda templates: templates[:-1],
    "heldout": lambda templates: templates[-1:],
    "both": lambda templates: templates,
}
SYMBOLS = {"add": "+", "subtract": "-", "double": "*", "halve": "/", "triple": "*"}
WEIGHTS = {"add": 3, "subtract": 3, "double": 1, "halve": 1, "triple": 1}


@dataclass(frozen=True)
class WordProblem:
    """A question, the steps that lead to its answer, and the answer."""

    question: str
    steps: tuple[str, ...]  # such as "12 + 7 = 19"; each starts from the result of the one before
    answer: str
    num_steps: int
    kind: str


@dataclass(frozen=True)
class Story:
    """Short sentences; the last ends in `answer`, which the earlier ones determine."""

    sentences: tuple[str, ...]
    answer: str
    kind: str


# --- word problems --------------------------------------------------------------------------------


def make_problem(
    seed: int,
    *,
    num_steps: int,
    split: Split = "train",
    phrasing: Phrasing = "train",
    max_value: int = MAX_VALUE,
) -> WordProblem:
    """Make a word problem of `num_steps` operations, with every value within 0..`max_value`.

    The split goes by the chain of steps alone. `phrasing="heldout"` words every operation in a way
    that training text never does, "both" in any way.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps}: a problem has at least one step; give 1 or more")
    if max_value < LEAST_MAX_VALUE:
        raise ValueError(
            f"max_value {max_value}: some values would have no step to go; "
            f"give {LEAST_MAX_VALUE} or more"
        )
    rng = random.Random(seed)
    while True:
        problem = _draw_problem(rng, num_steps, phrasing, max_value)
        if split_of("; ".join(problem.steps)) == split:
            return problem


def _draw_problem(
    rng: random.Random, num_steps: int, phrasing: Phrasing, max_value: int
) -> WordProblem:
    name, item = rng.choice(list(PRONOUNS)), rng.choice(ITEMS)
    he = PRONOUNS[name]
    value = rng.randint(2, 12)
    sentences, steps = [f"{name} has {value} {item}."], []
    for _ in range(num_steps):
        operation, operand, result = _draw_operation(rng, value, max_value)
        template = rng.choice(WORDINGS[phrasing](TEMPLATES[operation]))
        sentences.append(template.format(he=he, He=he.capitalize(), n=operand))
        steps.append(f"{value} {SYMBOLS[operation]} {operand} = {result}")
        value = result
    sentences.append(
        rng.choice((f"How many {item} does {he} have now?", f"How many {item} are there now?"))
    )
    return WordProblem(" ".join(sentences), tuple(steps), str(value), num_steps, "word_problem")


def _draw_operation(rng: random.Random, value: int, max_value: int) -> tuple[str, int, int]:
    """Return an operation that keeps `value` whole and in range, its operand and its result."""
    operand = rng.randint(2, 9)
    outcomes = {
        "add": (operand, value + operand),
        "subtract": (operand, value - operand),
        "double": (2, value * 2),
        "triple": (3, value * 3),
    }
    if value % 2 == 0:
        outcomes["halve"] = (2, value // 2)
    possible = [
        name
        for name, (_, result) in outcomes.items()
        if 0 <= result <= max_value and result != value  # nothing doubled or halved is no event
    ]
    operation = rng.choices(possible, [WEIGHTS[name] for name in possible])[0]
    return operation, *outcomes[operation]


def problem_prompt(problem: WordProblem, *, mode: Mode, open_tag: str = OPEN_TAG) -> str:
    """Return a problem's text up to where the model goes on, cut so that the mode is decided.

    On ends with the opening tag's line. Off ends with the space before the answer: where digits are
    tokens of their own that space is a token too, and no opening tag can follow it.
    """
    start = f"Question: {problem.question}\nAnswer: "
    return f"{start}{open_tag}\n" if mode == "on" else start


def problem_completion(problem: WordProblem, *, mode: Mode, close_tag: str = CLOSE_TAG) -> str:
    """Return what a perfect model writes after `problem_prompt`."""
    if mode == "off":
        return problem.answer
    return "\n".join(problem.steps) + f"\n{close_tag}\n\n{problem.answer}"


def problem_text(
    problem: WordProblem, *, mode: Mode, open_tag: str = OPEN_TAG, close_tag: str = CLOSE_TAG
) -> str:
    """Return a problem as it stands in pretraining text: worked inside the tags, or answered."""
    prompt = problem_prompt(problem, mode=mode, open_tag=open_tag)
    return prompt + problem_completion(problem, mode=mode, close_tag=close_tag)


# --- stories --------------------------------------------------------------------------------------


def make_story(seed: int, split: Split = "train") -> Story:
    """Make a story of 5 to 8 sentences about where a thing is or who has it."""
    rng = random.Random(seed)
    while True:
        story = rng.choice((_carrying, _giving, _moving))(rng, num_events=rng.randint(2, 5))
        if split_of(story_text(story)) == split:
            return story


def story_text(story: Story) -> str:
    """Return a story as it stands in pretraining text."""
    return " ".join(story.sentences)


def _carrying(rng: random.Random, num_events: int) -> Story:
    """A thing goes where its holder goes and stays where it is put down."""
    people, thing, start = rng.sample(list(PRONOUNS), 2), rng.choice(THINGS), rng.choice(PLACES)
    place_of = dict.fromkeys([*people, thing], start)
    holder: str | None = people[0]
    busy = holder  # whoever has just touched the thing leaves it for a sentence
    told = [f"{people[0]} and {people[1]} are in the {start}.", f"{holder} takes the {thing}."]
    for _ in range(num_events):
        person = rng.choice(people)
        if person == holder and person != busy and rng.random() < 0.6:
            holder, busy = None, person
            told.append(f"{person} puts down the {thing}.")
        elif holder is None and person != busy and place_of[person] == place_of[thing]:
            holder = busy = person
            told.append(f"{person} takes the {thing}.")
        else:
            place_of[person] = rng.choice([p for p in PLACES if p != place_of[person]])
            busy = None
            told.append(f"{person} goes to the {place_of[person]}.")
        if holder is not None:
            place_of[thing] = place_of[holder]
    answer = f"the {place_of[thing]}"
    return Story((*told, f"Now the {thing} is in {answer}."), answer, "carrying")


def _giving(rng: random.Random, num_events: int) -> Story:
    """Three people hand two things round."""
    people, things = rng.sample(list(PRONOUNS), 3), rng.sample(THINGS, 2)
    holder_of = dict(zip(things, people, strict=False))
    told = [f"{holder} has the {thing}." for thing, holder in holder_of.items()]
    for _ in range(num_events):
        thing = rng.choice(things)
        giver, taker = holder_of[thing], rng.choice([p for p in people if p != holder_of[thing]])
        holder_of[thing] = taker
        told.append(f"{giver} gives the {thing} to {taker}.")
    thing = rng.choice(things)
    answer = holder_of[thing]
    return Story((*told, f"Now the {thing} is with {answer}."), answer, "giving")


def _moving(rng: random.Random, num_events: int) -> Story:
    """Two people move two things between boxes."""
    people, things = rng.sample(list(PRONOUNS), 2), rng.sample(THINGS, 2)
    box_of = {thing: rng.choice(COLORS) for thing in things}
    told = [
        f"{person} puts the {thing} in the {box_of[thing]} box."
        for person, thing in zip(people, things, strict=True)
    ]
    for _ in range(num_events):
        person, thing = rng.choice(people), rng.choice(things)
        box_of[thing] = rng.choice([color for color in COLORS if color != box_of[thing]])
        told.append(f"{person} moves the {thing} to the {box_of[thing]} box.")
    thing = rng.choice(things)
    answer = f"the {box_of[thing]} box"
    return Story((*told, f"Now the {thing} is in {answer}."), answer, "moving")


# --- documents ------------------------------------------------------------------------------------


def split_of(content: str) -> Split:
    """Return the side a piece of content belongs to: one in ten is held out, for good."""
    return "heldout" if zlib.crc32(content.encode()) % 10 == 0 else "train"


def document(seed: int, split: Split = "train") -> str:
    """Return one document: a problem of 1 to 5 steps, most of them worked, or a story."""
    rng = random.Random(seed)
    if rng.random() >= PROBLEM_SHARE:
        return story_text(make_story(rng.getrandbits(64), split))
    num_steps, mode = rng.randint(1, MAX_STEPS), rng.choice(SHARES)
    problem = make_problem(rng.getrandbits(64), num_steps=num_steps, split=split)
    return problem_text(problem, mode=mode)


def documents(seed: int, split: Split, num_documents: int | None = None) -> Iterator[str]:
    """Yield documents that depend on (seed, index) alone; without a number, endlessly."""
    for index in itertools.islice(itertools.count(), num_documents):
        yield document(random.Random(f"document {seed} {index}").getrandbits(64), split)


def conversations(
    seed: int,
    split: Split,
    num_rows: int,
    *,
    max_steps: int = MAX_STEPS,
    max_value: int = MAX_VALUE,
) -> Iterator[Record]:
    """Yield conversations about word problems: each problem worked with reasoning on, then off."""
    for index in range(num_rows):
        rng = random.Random(f"conversation {seed} {index // 2}")
        problem = make_problem(
            rng.getrandbits(64),
            num_steps=rng.randint(1, max_steps),
            split=split,
            max_value=max_value,
        )
        mode = MODES[index % 2]
        worked = with_reasoning("\n".join(problem.steps), problem.answer)
        answer = worked if mode == "on" else problem.answer
        messages = (Message("user", problem.question), Message("assistant", answer))
        yield Record(messages, mode, f"generated problem {index}")
