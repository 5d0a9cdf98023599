"""A model as the judge of answers: right, wrong, or no verdict.

What is asked is a template with `{answer}` in it; how the reply is read is one of `READERS`. A
judge that answers nonsense, too late or not at all comes to no verdict, which is no grade: it
enters no mean and is counted. Of a pair, both orders are judged, so that none has the advantage.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from fretsaw.grade.grader import Asks, Expectation, Grade

# Where a row has nothing but the right answer.
BY_REFERENCE = """\
You compare an answer to a question with the right answer.

Question:
{question}

Right answer:
{reference}

Answer to judge:
{answer}

Does the answer to judge say the same as the right answer? Allow for other words and for trivial
rewriting, such as another form of a number; everything else is a difference. Think it through
briefly, then end with one line: "Judgement: Yes" or "Judgement: No"."""

_YES_NO = re.compile(r"\bjudge?ment\s*[\s*:]*\**\s*(yes|no)\b", re.IGNORECASE)
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_PAIR = re.compile(r"\[\[\s*(A>>B|A>B|A=B|B=A|B>A|B>>A)\s*\]\]")
PAIR_SCORES = {"A>>B": 0.0, "A>B": 0.0, "A=B": 0.5, "B=A": 0.5, "B>A": 1.0, "B>>A": 1.0}  # of B
_SWAPPED = str.maketrans("AB", "BA")


def read_yes_no(reply: str) -> tuple[str, float] | None:
    """Return the last judgement as it is kept, and its score; None where there is none."""
    found = _YES_NO.findall(reply)
    return (found[-1].capitalize(), float(found[-1].lower() == "yes")) if found else None


def read_rating(reply: str) -> tuple[str, float] | None:
    """Return the last rating from 1 to 10, and a tenth of it."""
    found = _RATING.findall(reply)
    if not found or not 1 <= float(found[-1]) <= 10:
        return None
    return found[-1], float(found[-1]) / 10


def read_pair(reply: str) -> tuple[str, float] | None:
    """Return the last verdict on A and B, and what B gets: 1, a half or 0."""
    found = _PAIR.findall(reply)
    return (found[-1], PAIR_SCORES[found[-1]]) if found else None


READERS: dict[str, Callable[[str], tuple[str, float] | None]] = {
    "yes_no": read_yes_no,
    "rating": read_rating,
    "pair": read_pair,
}


def check_judged(answer: str, expected: Expectation) -> Grade:
    """Raise ValueError for an expectation that no judge can work with."""
    _prompts(answer, expected)
    return Grade(0.0)


def grade_judged(pairs: Sequence[tuple[str, Expectation]], judge: Asks) -> list[Grade]:
    """Return the judge's grades of (answer, expectation) pairs.

    An expectation has a `prompt` with `{answer}` in it and how its reply `reads` (yes_no, rating,
    pair), perhaps a `system` text, other `fields` that stand in the prompt, and of a pair the same
    prompt with both in the other order, `swapped`. Or it has the right `answer` and the `question`,
    and is asked whether they agree.
    """
    asked = [_prompts(answer, expected) for answer, expected in pairs]
    flat = [(one[0], prompt) for one in asked for prompt in one[1]]
    replies = iter(judge.ask(flat) if flat else [])
    return [_decided([next(replies) for _ in prompts], reads) for _, prompts, reads in asked]


def grade_verdict(answer: str, expected: Expectation) -> Grade:
    """Return 1 where an answer's own verdict on a pair is the expected one, however strong.

    Raises ValueError where none is expected.
    """
    wanted = PAIR_SCORES.get(expected["answer"])
    if wanted is None:
        raise ValueError(f"answer {expected['answer']!r}: write one of {', '.join(PAIR_SCORES)}")
    found = read_pair(answer)
    verdict, score = found or ("no verdict", None)
    return Grade(float(score == wanted), f"{verdict} for {expected['answer']}")


def _prompts(answer: str, expected: Expectation) -> tuple[str, list[str], str]:
    """Return the system text, one prompt or both orders, and how replies are read."""
    values = {**expected.get("fields", {}), "answer": answer}
    template, reads = expected.get("prompt"), expected.get("reads", "yes_no")
    if template is None:
        if not expected.get("answer"):
            raise ValueError(
                "expected has neither a prompt for the judge nor the right answer; give one"
            )
        template = BY_REFERENCE
        values |= {"question": expected.get("question", ""), "reference": expected["answer"]}
    if reads not in READERS:
        raise ValueError(f"reads is {reads!r}; write one of {', '.join(READERS)}")
    templates = [template, *([expected["swapped"]] if expected.get("swapped") else [])]
    for text in templates:
        if not isinstance(text, str) or "{answer}" not in text:
            raise ValueError(f"prompt {text!r:.60}: has no {{answer}} in it, so nothing is judged")
    if len(templates) == 2 and reads != "pair":
        raise ValueError(f"reads is {reads!r} with a swapped prompt; only a pair has two orders")
    system = expected.get("system") or ""
    return str(system), [_filled(text, values) for text in templates], reads


def _filled(template: str, values: Mapping[str, object]) -> str:
    """Return a template with its fields filled in, all at once, so that no value is a field."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda found: str(values[found[1]]), template)


def _decided(votes: Sequence[Sequence[str | Exception]], reads: str) -> Grade:
    """Return the grade that votes come to; none where one of the orders has no verdict."""
    shown, scores = [], []
    for order, replies in enumerate(votes):
        found = [None if isinstance(one, Exception) else READERS[reads](one) for one in replies]
        verdicts = [one for one in found if one is not None]
        if order == 1:  # the answer stood first
            verdicts = [(text.translate(_SWAPPED), 1 - score) for text, score in verdicts]
        counts = Counter(score for _, score in verdicts).most_common(2)
        is_tied = len(counts) == 2 and counts[0][1] == counts[1][1]
        if not verdicts or (reads == "yes_no" and is_tied):
            fault = next((str(one) for one in replies if isinstance(one, Exception)), "")
            return Grade(0.0, fault or "no verdict", is_graded=False)
        mean = sum(score for _, score in verdicts) / len(verdicts)
        scores.append(counts[0][0] if reads == "yes_no" else mean)
        shown.append(" ".join(text for text, _ in verdicts))
    return Grade(sum(scores) / len(scores), ", ".join(shown))
