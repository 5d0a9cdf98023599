"""Pairs of answers: in Arena-Hard they are judged, in JudgeBench the model is the judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fretsaw.data.rows import Row, read_objects
from fretsaw.grade.judge import PAIR_SCORES
from fretsaw.tasks.fields import asked, text_of
from fretsaw.tasks.problem import Problem

BASELINE = "model_answer/gpt-4-0314.jsonl"
STRONG_WEIGHT = 3  # a verdict of much better counts as so many
_SWAPPED = str.maketrans("AB", "BA")
PROMPT = """\
Which of two assistants answers this question better? First answer it yourself. Then compare both
answers with yours: find their mistakes, and weigh whether they are right, to the point and whole.
Neither length nor the order in which they stand counts.

[Question]
{question}

[Answer of assistant A]
{a}

[Answer of assistant B]
{b}

End with one verdict: [[A>>B]] (A is much better), [[A>B]], [[A=B]], [[B>A]] or [[B>>A]]."""


def read_arena_hard(path: Path) -> list[Problem]:
    """Read `uid` or `question_id`, and `prompt` or `turns`; beside it the baseline's answers.

    An answer is judged against the baseline's in both orders.
    """
    baseline = {
        _id(row, where): _content(row, where) for where, row in read_objects(path.parent / BASELINE)
    }
    problems = []
    for where, row in read_objects(path):
        id, question = _id(row, where), _question(row, where)
        if id not in baseline:
            raise ValueError(f"{where}: {path.parent / BASELINE} has no answer to {id}")
        fields = {"question": question, "base": baseline[id]}
        expected = {
            "prompt": PROMPT.replace("{a}", "{base}").replace("{b}", "{answer}"),
            "swapped": PROMPT.replace("{a}", "{answer}").replace("{b}", "{base}"),
            "reads": "pair",
            "fields": fields,
        }
        problems.append(asked(question, expected, "judge", id=id, where=where))
    return problems


def win_rate(evidence: Sequence[str]) -> dict[str, float]:
    """Return the share of games won, a tie a half, a much better or worse answer three times."""
    games: list[float] = []
    for text in evidence:
        for verdict in text.replace(",", " ").split():
            if verdict in PAIR_SCORES:
                weight = STRONG_WEIGHT if ">>" in verdict else 1
                games += [PAIR_SCORES[verdict]] * weight
    return {"win_rate": sum(games) / len(games)} if games else {}


def read_judgebench(path: Path) -> list[Problem]:
    """Read `pair_id`, `question`, `response_A`, `response_B`, `label` (A>B or B>A), `source`.

    Every pair is put in both orders, one problem after the other.
    """
    problems = []
    for where, row in read_objects(path):
        label = text_of(row, where, "label")
        if label not in ("A>B", "B>A"):
            raise ValueError(f"{where}: label is {label!r}; it is A>B or B>A")
        id, question = text_of(row, where, "pair_id"), text_of(row, where, "question")
        answers = [text_of(row, where, f"response_{name}") for name in "AB"]
        kind = str(row.get("source", ""))
        for order, (a, b), wanted in (
            ("as given", answers, label),
            ("swapped", answers[::-1], label.translate(_SWAPPED)),
        ):
            prompt = PROMPT.replace("{question}", "\0q").replace("{a}", "\0a").replace("{b}", "\0b")
            prompt = prompt.replace("\0q", question).replace("\0a", a).replace("\0b", b)
            expected = {"answer": wanted}
            problems.append(
                asked(prompt, expected, "verdict", id=f"{id} {order}", where=where, kind=kind)
            )
    return problems


def pair_accuracy(evidence: Sequence[str]) -> dict[str, float]:
    """Return the share of pairs judged rightly over both orders: more votes for it than against.

    Evidence stands in the order of the problems, two a pair: "A>B for A>B".
    """
    votes = [_vote(text) for text in evidence]
    pairs = list(zip(votes[::2], votes[1::2], strict=True)) if len(votes) % 2 == 0 else []
    return {"pair_accuracy": sum(sum(pair) > 0 for pair in pairs) / len(pairs)} if pairs else {}


def _vote(evidence: str) -> int:
    verdict, _, wanted = evidence.partition(" for ")
    if verdict not in PAIR_SCORES or PAIR_SCORES[verdict] == 0.5:
        return 0
    return 1 if PAIR_SCORES[verdict] == PAIR_SCORES[wanted] else -1


def _id(row: Row, where: str) -> str:
    return text_of(row, where, "uid", "question_id")


def _question(row: Row, where: str) -> str:
    match row:
        case {"turns": [{"content": str(content)}, *_]} if content.strip():
            return content
    return text_of(row, where, "prompt")


def _content(row: Row, where: str) -> str:
    """Return an answer as Arena-Hard's files have it, of either version."""
    found: Any = None
    match row:
        case {"choices": [{"turns": [{"content": found}, *_]}, *_]}:
            pass
        case {"messages": [*_, {"role": "assistant", "content": {"answer": found}}]}:
            pass
        case {"messages": [*_, {"role": "assistant", "content": found}]}:
            pass
    if not isinstance(found, str):
        raise ValueError(f"{where}: no answer in choices or messages; give the published file")
    return found
