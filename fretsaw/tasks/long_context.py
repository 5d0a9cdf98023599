"""Long texts with something to find in them, generated after RULER (arXiv 2404.06654).

- needle: a number that is said once, among other text;
- needles: the number of one key among many keys;
- values: all numbers of one key;
- variables: the names that hold a value, through a chain of assignments;
- words: the words that stand in a list most often.
"""

import random
from collections.abc import Mapping
from typing import Literal, get_args

from fretsaw.data import world
from fretsaw.tasks.fields import asked
from fretsaw.tasks.problem import BadOption, Problem

Kind = Literal["needle", "needles", "values", "variables", "words"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MIN_WORDS, MAX_WORDS = 100, 1_000_000
NUM_KEYS, NUM_VALUES, NUM_CHAIN, NUM_FREQUENT = 20, 4, 5, 3

_FILLER = (
    "The path along the river was wet after the rain.",
    "Somebody had left a red kite on the bench.",
    "Two boats came back before it was dark.",
    "The baker opened her shop at six, as on any other day.",
    "Nobody in the village remembered a longer winter.",
    "A dog slept in front of the door and did not move.",
    "There was tea, and bread, and a little cheese.",
    "The clock in the hall was slow by ten minutes.",
)
_NAMES = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jasper")
_ENDS = ("north", "south", "east", "west", "upper", "lower", "inner", "outer", "old", "new")


def from_options(
    num_problems: int, seed: int, split: world.Split, options: Mapping[str, str]
) -> list[Problem]:
    """Return problems as a task's options say: words=4000, kind=needle (all kinds by turns)."""
    try:
        num_words = int(options.get("words", "1000"))
    except ValueError:
        raise BadOption("words is a number") from None
    if not MIN_WORDS <= num_words <= MAX_WORDS:
        raise BadOption(f"words is {num_words}; lies in {MIN_WORDS} to {MAX_WORDS}")
    kinds: list[Kind] = [kind for kind in KINDS if options.get("kind", kind) == kind]
    if not kinds:
        raise BadOption(f"kind is one of {', '.join(KINDS)}")
    return [
        make_problem(kinds[i % len(kinds)], num_words, f"{seed} {split} {i}", str(i))
        for i in range(num_problems)
    ]


def make_problem(kind: Kind, num_words: int, seed: str, id: str) -> Problem:
    """Return a problem of a kind, in a text of about so many words."""
    rng = random.Random(f"long context {kind} {num_words} {seed}")
    keys = [f"{name}-{end}" for name in _NAMES for end in _ENDS]
    rng.shuffle(keys)
    match kind:
        case "needle" | "needles" | "values":
            facts, wanted = _numbers(rng, keys, kind)
            text = _hidden(rng, facts, num_words)
            numbers = "numbers" if kind == "values" else "number"
            question = f"What {numbers} did the text give for {keys[0]}?"
        case "variables":
            facts, wanted, value = _assignments(rng)
            text = _hidden(rng, facts, num_words, in_order=True)
            question = f"Which variables hold the value {value}? Name all of them."
        case "words":
            text, wanted = _frequent(rng, keys, num_words)
            question = f"Which {NUM_FREQUENT} words stand in the list most often?"
    asked_for = f"{text}\n\n{question}"
    return asked(asked_for, {"words": wanted}, "recall", id=id, where="", kind=kind)


def _numbers(rng: random.Random, keys: list[str], kind: str) -> tuple[list[str], list[str]]:
    """Return sentences that give numbers to keys, and the numbers of the first key."""
    num_own = NUM_VALUES if kind == "values" else 1
    num_others = 0 if kind == "needle" else NUM_KEYS
    named = [keys[0]] * num_own + keys[1 : 1 + num_others]
    values = [str(number) for number in rng.sample(range(10**6, 10**7), len(named))]
    facts = [f"The number for {k} is {v}." for k, v in zip(named, values, strict=True)]
    return facts, values[:num_own]


def _assignments(rng: random.Random) -> tuple[list[str], list[str], str]:
    """Return assignments, the names that end up with one value, and that value."""
    names = [f"V{number}" for number in rng.sample(range(100, 1000), 2 * NUM_CHAIN)]
    values = [str(number) for number in rng.sample(range(10**4, 10**5), 2)]
    lines: list[list[str]] = []
    for chain, value in ((names[:NUM_CHAIN], values[0]), (names[NUM_CHAIN:], values[1])):
        sources = [value, *chain[:-1]]
        lines.append([f"Let {n} = {s}." for n, s in zip(chain, sources, strict=True)])
    mixed = [line for pair in zip(*lines, strict=True) for line in pair]
    return mixed, names[:NUM_CHAIN], values[0]


def _hidden(rng: random.Random, facts: list[str], num_words: int, *, in_order: bool = False) -> str:
    """Return filler with the facts between its sentences, at random places."""
    sentences, count = [], sum(len(fact.split()) for fact in facts)
    while count < num_words:
        sentences.append(rng.choice(_FILLER))
        count += len(sentences[-1].split())
    facts = facts if in_order else rng.sample(facts, len(facts))
    places = sorted(rng.choices(range(len(sentences) + 1), k=len(facts)), reverse=True)
    for place, fact in zip(places, reversed(facts), strict=True):
        sentences.insert(place, fact)
    return " ".join(sentences)


def _frequent(rng: random.Random, keys: list[str], num_words: int) -> tuple[str, list[str]]:
    """Return a list of words of which a few stand twice as often as any other, and those few."""
    often, rest = keys[:NUM_FREQUENT], keys[NUM_FREQUENT:]
    times = max(1, num_words // (len(rest) + 2 * NUM_FREQUENT))
    words = often * (2 * times) + rest * times
    rng.shuffle(words)
    return "List: " + ", ".join(words) + ".", often
